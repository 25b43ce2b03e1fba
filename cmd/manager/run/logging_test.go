package run

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/vextrus/saga-operator/internal/callbacktoken"
)

func TestLoggerRedactsCallbackTokens(t *testing.T) {
	t.Parallel()
	token := callbacktoken.New()
	for _, format := range []string{"json", "text"} {
		var out bytes.Buffer
		slog.New(newHandler(Config{LogFormat: format}, &out)).With("with", token).Warn("message "+token, "text", token, "error", fmt.Errorf("failed with %s: %w", token, errors.ErrUnsupported))
		if text := out.String(); strings.Contains(text, token) || strings.Count(text, callbacktoken.Redacted) != 4 || !strings.Contains(text, "unsupported operation") {
			t.Errorf("%s: the log has %s", format, text)
		}
	}
}
