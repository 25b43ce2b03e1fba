package run

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/participant"
	participanthttp "github.com/vextrus/saga-operator/internal/participant/http"
)

// callbackPath is where the HTTP API takes callbacks; the token follows.
const callbackPath = "/v1/callbacks/"

// callbackURLs gives out the URLs of callbacks: the API's, as participants reach it, with a token.
type callbackURLs struct {
	base   string
	tokens *engine.Callbacks
}

// callbacks returns nil where participants reach no API.
func callbacks(c Config, tokens *engine.Callbacks) participanthttp.Callbacks {
	if c.CallbackURL == "" {
		return nil
	}
	return &callbackURLs{strings.TrimSuffix(c.CallbackURL, "/") + callbackPath, tokens}
}

// Issue implements participanthttp.Callbacks.
func (u *callbackURLs) Issue(ctx context.Context, call participant.Call, within time.Duration) (string, error) {
	token, err := u.tokens.Issue(ctx, call, within)
	return u.base + token, err
}

// checkCallbackURL says what is wrong with the base of callbacks.
func checkCallbackURL(base string) error {
	if base == "" {
		return nil
	}
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return fmt.Errorf("--callback-url %q is not the base URL of the HTTP API, such as https://saga-operator-api.saga-system.svc", base)
	}
	return nil
}
