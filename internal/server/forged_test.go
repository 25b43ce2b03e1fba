package server

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/operations"
)

// TestStartReturnsNoForgedSaga is about a cluster without admission policies, in which everybody who may
// create sagas can write all annotations. The operator's own account can do so here.
func TestStartReturnsNoForgedSaga(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := r.editor()
	send := func() answer {
		return r.do(call{method: "POST", path: sagas, token: token, header: key("k-1"), body: manifest("order-1")})
	}
	first := send().saga(t)
	parts := strings.Split(first.Annotations[operations.RequestAnnotation], "/")
	account, err := kubernetes(t).ServiceAccount(t.Context(), "saga-system", "saga-operator")
	r.ok(err)
	kube, err := typedClient(account)
	r.ok(err)
	now := time.Now().UTC().Format("20060102150405")
	for what, annotation := range map[string]string{ // a guess of the key and the content is enough for the first two parts
		"without a signature":       strings.Join(parts[:2], "/"),
		"with an invented one":      strings.Join(append(parts[:3:3], strings.Repeat("0", len(parts[3]))), "/"),
		"with an invented time too": strings.Join([]string{parts[0], parts[1], now, parts[3]}, "/"),
	} {
		r.remove("order-1")
		r.forget()
		var forged v1.Saga
		r.ok(json.Unmarshal([]byte(manifest("order-1")), &forged))
		forged.Namespace = r.ns
		forged.Annotations = map[string]string{v1.CreatedByAnnotation: first.Annotations[v1.CreatedByAnnotation], operations.RequestAnnotation: annotation}
		r.ok(kube.Create(t.Context(), &forged))
		if a := send(); a.status != http.StatusConflict || a.problem(t).Reason != "AlreadyExists" {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
	}
}
