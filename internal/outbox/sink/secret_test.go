package sink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// hunter2 is a secret that no package redacts but this one.
const hunter2 = Secret("hunter2")

// showsNothing fails the test if a text shows the secret, or does not say that there is one.
func showsNothing(t *testing.T, how, text string) {
	t.Helper()
	if strings.Contains(text, string(hunter2)) || !strings.Contains(text, redacted) {
		t.Errorf("%s shows %q", how, text)
	}
}

func TestSecretIsRedactedInText(t *testing.T) {
	t.Parallel()
	in := Credentials{Username: "saga", Password: hunter2, Token: hunter2}
	for _, format := range []string{"%v", "%s", "%q", "%+v"} {
		showsNothing(t, format, fmt.Sprintf(format, hunter2))
		showsNothing(t, format+" of credentials", fmt.Sprintf(format, in))
		showsNothing(t, format+" of a pointer", fmt.Sprintf(format, &in))
	}
	showsNothing(t, "an error", fmt.Errorf("%w: logging in with %s", errors.ErrUnsupported, hunter2).Error())
	if text := fmt.Sprintf("%x", hunter2); text != fmt.Sprintf("%x", redacted) {
		t.Errorf("%%x shows %q", text)
	}
}

func TestSecretIsRedactedInGoSyntax(t *testing.T) {
	t.Parallel()
	showsNothing(t, "%#v", fmt.Sprintf("%#v", hunter2))
	showsNothing(t, "%#v of credentials", fmt.Sprintf("%#v", Credentials{Password: hunter2}))
}

func TestSecretIsRedactedInJSON(t *testing.T) {
	t.Parallel()
	for how, v := range map[string]any{
		"a value": hunter2, "a field": Credentials{Token: hunter2}, "a list": []Secret{hunter2},
	} {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		showsNothing(t, how, string(raw))
	}
}

func TestSecretIsRedactedInLogs(t *testing.T) {
	t.Parallel()
	if v := slog.AnyValue(hunter2).Resolve(); v.String() != redacted {
		t.Errorf("a handler is given %q", v)
	}
	for how, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"JSON": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var out bytes.Buffer
		slog.New(handler(&out)).Info("connecting", "password", hunter2, "credentials", Credentials{Password: hunter2})
		showsNothing(t, how, out.String())
	}
}

func TestSecretThatIsEmptyShowsThatItIs(t *testing.T) {
	t.Parallel()
	if text := fmt.Sprint(Secret("")); text != "" {
		t.Errorf("an empty secret is %q", text)
	}
}
