package http

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/vextrus/saga-operator/internal/outbox/sink"
)

// checkHeaders finds what the transport would refuse with every message, without showing any value.
func checkHeaders(c *Config) error {
	for name, value := range c.Headers {
		if !isToken(name) {
			return fmt.Errorf("%q is no name of a header", name)
		}
		if hasControl(value) {
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

func isToken(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool {
		return r >= 0x7f || !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	}) < 0
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
