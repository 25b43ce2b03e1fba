package outbox

import (
	"fmt"
	"strings"
	"testing"
)

func TestIncomingMessageHasLimitedSize(t *testing.T) {
	t.Parallel()
	headers := func(n, length int) map[string]string {
		all := map[string]string{}
		for i := range n {
			all[fmt.Sprintf("%04d", i)] = strings.Repeat("x", length-4)
		}
		return all
	}
	for what, c := range map[string]struct {
		in   Incoming
		want string
	}{
		"the largest body":     {Incoming{Body: make([]byte, MaxIncomingBytes)}, ""},
		"one byte more":        {Incoming{Body: make([]byte, MaxIncomingBytes+1)}, "its body is"},
		"the most headers":     {Incoming{Headers: headers(maxIncomingHeaders, 5)}, ""},
		"one header more":      {Incoming{Headers: headers(maxIncomingHeaders+1, 5)}, "129 headers"},
		"the largest headers":  {Incoming{Headers: headers(64, maxIncomingHeaderBytes/64)}, ""},
		"larger headers":       {Incoming{Headers: headers(64, maxIncomingHeaderBytes/64+1)}, "its headers are"},
		"a name that is large": {Incoming{Headers: map[string]string{strings.Repeat("x", maxIncomingHeaderBytes+1): ""}}, "its headers are"},
	} {
		err := c.in.checkSize()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
}

func TestIncomingEnvelopeHasLimitedAttributes(t *testing.T) {
	t.Parallel()
	envelope := func(attributes int) string { return "{" + strings.Repeat(`"a":1,`, attributes-1) + `"data":{"a":[1]}}` }
	for body, want := range map[string]string{
		envelope(maxEnvelopeFields):     "",
		envelope(maxEnvelopeFields + 1): "more than 128 attributes",
		`{"data":[[1]],"extra":{}}`:     "is not text",
		`{"extra":[1]}`:                 "is not text",
	} {
		err := checkEnvelope([]byte(body))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v, want %q", body, err, want)
		}
	}
}
