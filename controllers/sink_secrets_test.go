package controllers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/callbacktoken"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
)

func TestSinkErrorsHaveNoCallbackToken(t *testing.T) {
	t.Parallel()
	cause := fmt.Errorf("%w: it repeats %s", errors.ErrUnsupported, callbacktoken.New())
	p := hidden(nil).around(&memory.Publisher{Fault: func(context.Context, *outbox.Message) error { return cause }})
	errs := p.Publish(t.Context(), make([]outbox.Message, 1))
	if len(errs) != 1 || !errors.Is(errs[0], cause) || errs[0].Error() != "unsupported operation: it repeats [redacted]" {
		t.Errorf("the errors are %v", errs)
	}
}

func TestSinkErrorsHaveNothingOfItsSecret(t *testing.T) {
	t.Parallel()
	all := newHidden("saga", "pass word/1", "tok+en")
	for _, shown := range []string{
		"pass word/1", "tok+en", "pass+word%2F1", "pass%20word%2F1", "tok%2Ben", "cGFzcyB3b3JkLzE=", "dG9rK2Vu",
		"c2FnYTpwYXNzIHdvcmQvMQ==", // saga:pass word/1, as HTTP has it
	} {
		cause := fmt.Errorf("%w: it repeats %s", errors.ErrUnsupported, shown)
		p := all.around(&memory.Publisher{Fault: func(context.Context, *outbox.Message) error { return cause }})
		errs := p.Publish(t.Context(), make([]outbox.Message, 1))
		if len(errs) != 1 || !errors.Is(errs[0], cause) || errs[0].Error() != "unsupported operation: it repeats [redacted]" {
			t.Errorf("%s: the errors are %v", shown, errs)
		}
	}
}

func hostsOf(annotation string) hostList {
	return newHostList(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s", Annotations: map[string]string{v1.SecretHostsAnnotation: annotation}}})
}

func TestSecretAllowsOnlyHostsThatItLists(t *testing.T) {
	t.Parallel()
	for annotation, hosts := range map[string]map[string]bool{
		"":                        {"a.example": false, "": false},
		"a.example, B.example. ,": {"a.example": true, "A.EXAMPLE.": true, "b.example": true, "c.example": false, "x.a.example": false, "": false},
		"*.example.com": {
			"a.example.com": true, "a.b.example.com": true, "example.com": false, ".example.com": false, "evilexample.com": false, "a.example.com.evil": false,
		},
		"*": {"a.example": false}, "*.": {"a.example": false}, "*.1": {"10.0.0.1": false},
		"10.0.0.1,[::1]": {"10.0.0.1": true, "10.0.0.2": false, "::1": true, "[::1]": true},
	} {
		for host, want := range hosts {
			if got := hostsOf(annotation).allow(host); got != want {
				t.Errorf("a Secret for %q may be sent to %q: %t", annotation, host, got)
			}
		}
	}
}

// TestBrokersOfSecretAreThoseItLists has a broker name another one, to which the credentials would go.
func TestBrokersOfSecretAreThoseItLists(t *testing.T) {
	t.Parallel()
	var reached []string
	dial := func(_ context.Context, _, address string) (net.Conn, error) {
		reached = append(reached, address)
		near, _ := net.Pipe()
		return near, nil
	}
	secrets := &sinkSecrets{lists: []hostList{hostsOf("kafka.example,other.example"), hostsOf("kafka.example")}}
	for _, address := range []string{"kafka.example:9092", "other.example:9092", "evil.example:9092", "no port"} {
		_, err := secrets.guarded(dial)(t.Context(), "tcp", address)
		if allowed := address == "kafka.example:9092"; (err == nil) != allowed {
			t.Errorf("%s: %v", address, err)
		}
	}
	if len(reached) != 1 {
		t.Errorf("connections went to %v", reached)
	}
}
