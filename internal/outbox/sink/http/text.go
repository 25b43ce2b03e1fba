package http

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/vextrus/saga-operator/internal/httpheader"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
)

// checkHeaders finds headers that may not be given, and what the transport would refuse with every
// message, without showing any value.
func checkHeaders(c *Config) error {
	seen := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		if err := checkName(name); err != nil {
			return fmt.Errorf("header %q %w", name, err)
		}
		folded := httpheader.Fold(name)
		if other, twice := seen[folded]; twice {
			return fmt.Errorf("header %q is the same as %s to many servers; give one of them", name, other)
		}
		seen[folded] = name
		if hasControl(c.Headers[name]) {
			return fmt.Errorf("header %s has a control character in it", name)
		}
	}
	switch {
	case hasControl(c.UserAgent):
		return errors.New("the user agent has a control character in it")
	case hasControl(string(c.Credentials.Token)):
		return errors.New("the token has a control character in it, such as a line break at its end")
	}
	return nil
}

// setHere are the headers that the publisher sets, beside those that no request may give.
var setHere = []string{"authorization", "cookie", "user-agent"}

func checkName(name string) error {
	if err := httpheader.Check(name); err != nil {
		return err
	}
	folded := httpheader.Fold(name)
	if slices.Contains(setHere, folded) || strings.HasPrefix(folded, prefix) || strings.HasPrefix(folded, "content-") {
		return errors.New("is set by the operator, or comes from the Secret of credentials, and cannot be set here")
	}
	return nil
}

func hasControl(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) >= 0
}

// redactor takes out what a service that repeats our request in its answer would have us show.
func redactor(c sink.Credentials) *strings.Replacer {
	var pairs []string
	for _, secret := range []string{basic(c), string(c.Password), string(c.Token)} {
		if secret != "" {
			pairs = append(pairs, secret, "[redacted]")
		}
	}
	return strings.NewReplacer(pairs...)
}

// basic is empty where there is neither a name nor a password.
func basic(c sink.Credentials) string {
	if c.Username == "" && c.Password == "" {
		return ""
	}
	return base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + string(c.Password)))
}

// shown makes one printable line of the beginning of an answer.
func (p *Publisher) shown(body string) string {
	text := p.secrets.Replace(body) // before it is cut, so that no half of a secret is left
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(text[:min(len(text), maxShownBytes)], ""))
	return strings.Join(strings.Fields(text), " ")
}
