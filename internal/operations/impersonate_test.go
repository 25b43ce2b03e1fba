package operations

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/transport"
)

func TestImpersonationRefusesSpaces(t *testing.T) {
	for _, who := range []Caller{
		{Name: "grace "}, {Name: " grace"}, {Name: "grace", UID: "1\t"}, {Name: "grace", Groups: []string{"a", " b"}},
		{Name: "system:serviceaccount:a:b "},
	} {
		_, err := impersonationOf(who)
		var refused *RejectedError
		if !errors.As(err, &refused) || !strings.Contains(refused.Message, "space") {
			t.Errorf("%+q: %v", who, err)
		}
	}
}

func TestImpersonationTakesIdentityOfCaller(t *testing.T) {
	extra := map[string][]string{"example.com/team": {"shop"}}
	for _, c := range []struct {
		who    Caller
		uid    string
		groups []string
	}{
		{Caller{Name: "grace", UID: "17", Groups: []string{"a", "b c"}, Extra: extra}, "17", []string{"a", "b c"}},
		{Caller{Name: "system:serviceaccount:a:b", UID: "18", Groups: []string{"system:serviceaccounts"}, Extra: extra}, "", nil},
	} {
		got, err := impersonationOf(c.who)
		if err != nil || got.UserName != c.who.Name || got.UID != c.uid || !slices.Equal(got.Groups, c.groups) || got.Extra != nil {
			t.Errorf("%+v: %+v, %v", c.who, got, err)
		}
	}
}

// Without an identity the write would have the rights of the operator.
func TestImpersonationNeedsCaller(t *testing.T) {
	h := &handlers{Options: Options{Impersonate: true}}
	for _, ctx := range []context.Context{t.Context(), WithCaller(t.Context(), Caller{})} {
		if _, err := h.onBehalf(ctx); !errors.Is(err, errNobody) {
			t.Errorf("without a caller: %v", err)
		}
	}
	ctx, err := h.onBehalf(WithCaller(t.Context(), Caller{Name: "grace"}))
	if err != nil || ctx.Value(impersonatedKey{}).(transport.ImpersonationConfig).UserName != "grace" {
		t.Errorf("with a caller: %v", err)
	}
	h.Impersonate = false
	if ctx, err := h.onBehalf(t.Context()); err != nil || ctx.Value(impersonatedKey{}) != nil {
		t.Errorf("switched off: %v", err)
	}
}
