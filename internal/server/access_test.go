package server

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vextrus/saga-operator/internal/operations"
)

// reads are the operations that only look; decides and abandons each need a right of their own. All others change something.
var (
	reads    = map[string]bool{"listSagas": true, "getSaga": true, "getSagaHistory": true}
	decides  = "decideSaga"
	abandons = "abandonSaga"
)

// requests has one for each operation that needs a token. Each is complete and would succeed, about the saga of that name.
func requests(t *testing.T, id, name string) call {
	saga := "/v1/namespaces/NS/sagas/" + name
	switch id {
	case "createSaga":
		return call{method: "POST", path: "/v1/namespaces/NS/sagas", body: manifest("new-" + uuid.NewString()), header: key(uuid.NewString())}
	case "listSagas":
		return call{method: "GET", path: "/v1/namespaces/NS/sagas"}
	case "getSaga":
		return call{method: "GET", path: saga}
	case "getSagaHistory":
		return call{method: "GET", path: saga + "/history"}
	case "suspendSaga", "resumeSaga", "cancelSaga":
		return call{method: "POST", path: saga + "/" + strings.TrimSuffix(id, "Saga")}
	case "decideSaga":
		return call{method: "POST", path: saga + "/decide", body: `{"step":"reserve","verdict":"Retry","reason":"the warehouse is back"}`}
	case "abandonSaga":
		return call{method: "POST", path: saga + "/abandon", body: `{"reason":"the warehouse is gone"}`}
	}
	t.Fatalf("there is a new operation %s: add it here, and say who may", id)
	return call{}
}

// guardedOperations are those of the document that need a token.
func guardedOperations(t *testing.T, r *rig) (ids []string) {
	for _, item := range described(t, r.server.documentJSON).Paths {
		for _, o := range item {
			if o.OperationID != "answerCallback" {
				ids = append(ids, o.OperationID)
			}
		}
	}
	if len(ids) < 9 {
		t.Fatalf("the document has only the operations %v", ids)
	}
	return ids
}

// forged is a token whose signature is not its own.
func forged(token string) string {
	parts := strings.Split(token, ".")
	last := []byte(parts[2])
	for i, c := range last[:8] {
		last[i] = 'A' + ('Z' - c%26 - 'A')
	}
	return parts[0] + "." + parts[1] + "." + string(last)
}

// signed is a token made anew of a good one, by the API server's own key: it ends at a time, and began two hours before.
func (r *rig) signed(token string, ends time.Time) string {
	r.Helper()
	encoding := base64.RawURLEncoding
	parts := strings.Split(token, ".")
	payload, err := encoding.DecodeString(parts[1])
	r.ok(err)
	var claims map[string]any
	r.ok(json.Unmarshal(payload, &claims))
	began := ends.Add(-2 * time.Hour).Unix()
	claims["exp"], claims["iat"], claims["nbf"] = ends.Unix(), began, began
	payload, err = json.Marshal(claims)
	r.ok(err)
	text, err := os.ReadFile(kubernetes(r).ServiceAccountKey())
	r.ok(err)
	block, _ := pem.Decode(text)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	r.ok(err)
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		r.Fatalf("the API server signs with a %T, and this test knows ES256 only", parsed)
	}
	unsigned := parts[0] + "." + encoding.EncodeToString(payload)
	sum := sha256.Sum256([]byte(unsigned))
	a, b, err := ecdsa.Sign(rand.Reader, key, sum[:])
	r.ok(err)
	return unsigned + "." + encoding.EncodeToString(append(a.FillBytes(make([]byte, 32)), b.FillBytes(make([]byte, 32))...))
}

func TestWhoMayDoWhatIsTheClustersWord(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	other := r.namespace()
	all := []string{"saga-viewer", "saga-editor", "saga-decider", "saga-abandoner"}
	outsider := r.account("outsider", other, all...)
	viewer := r.account("viewer", r.ns, "saga-viewer")
	editor := r.account("editor", r.ns, "saga-viewer", "saga-editor")
	decider := r.account("decider", r.ns, "saga-viewer", "saga-editor", "saga-decider")
	abandoner := r.account("abandoner", r.ns, "saga-abandoner")
	chief := r.account("chief", r.ns, all...)
	creator := r.account("creator", r.ns, "saga-editor")
	gone := r.account("gone", r.ns, all...)
	revoked := r.token(gone, audience)
	r.ok(r.admin.Delete(t.Context(), gone))
	r.until("the API server itself knows that the account is gone", func() bool { return !r.good(revoked) })
	good := r.token(chief, audience)

	always := func(status int) func(string) int { return func(string) int { return status } }
	except := func(forbidden ...string) func(string) int { // 0 is success
		return func(id string) int {
			if slices.Contains(forbidden, id) {
				return http.StatusForbidden
			}
			return 0
		}
	}
	users := map[string]struct {
		token string
		want  func(operation string) int // 0 is success
	}{
		"no token":                     {"", always(http.StatusUnauthorized)},
		"junk":                         {"junk", always(http.StatusUnauthorized)},
		"a forged signature":           {forged(good), always(http.StatusUnauthorized)},
		"an expired token":             {r.signed(good, time.Now().Add(-10*time.Minute)), always(http.StatusUnauthorized)},
		"the same, not yet expired":    {r.signed(good, time.Now().Add(time.Hour)), always(0)}, // it is the time that makes the difference, and not who has signed
		"an account that is gone":      {revoked, always(http.StatusUnauthorized)},
		"a token for the API server":   {r.token(chief), always(http.StatusUnauthorized)},
		"a token for another audience": {r.token(chief, "vault"), always(http.StatusUnauthorized)},
		"an editor of another":         {r.token(outsider, audience), always(http.StatusForbidden)},
		"a user without any right":     {r.token(r.account("guest", r.ns), audience), always(http.StatusForbidden)},
		"a viewer": {r.token(viewer, audience), func(id string) int {
			if reads[id] {
				return 0
			}
			return http.StatusForbidden
		}},
		"an editor":                 {r.token(editor, audience), except(decides, abandons)},
		"a writer who may not read": {r.token(creator, audience), except(append(slices.Collect(maps.Keys(reads)), decides, abandons)...)},
		"who may decide":            {r.token(decider, audience), except(abandons)},
		"who may only abandon": {r.token(abandoner, audience), func(id string) int {
			if id == abandons {
				return 0
			}
			return http.StatusForbidden
		}},
		"who may do everything": {good, always(0)},
	}
	for _, id := range guardedOperations(t, r) {
		for who, user := range users {
			t.Run(id+" by "+who, func(t *testing.T) {
				name := "saga-" + uuid.NewString()
				r.create(good, name)
				c := requests(t, id, name)
				c.token = user.token
				a := r.do(c)
				want := user.want(id)
				if want == 0 {
					if a.status >= http.StatusMultipleChoices {
						t.Fatalf("answered with %d: %s", a.status, a.body)
					}
					return
				}
				if a.status != want {
					t.Fatalf("answered with %d, want %d: %s", a.status, want, a.body)
				}
				p := a.problem(t)
				if want == http.StatusUnauthorized && !strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Bearer") {
					t.Errorf("WWW-Authenticate is %q", a.header.Get("WWW-Authenticate"))
				}
				if want == http.StatusForbidden && (!strings.Contains(p.Detail, "sagas") || !strings.Contains(p.Detail, r.ns)) {
					t.Errorf("it does not say which right is missing: %s", p.Detail)
				}
				c = requests(t, id, "no-such-saga")
				c.token = user.token
				if b := r.do(c); b.status != want || b.problem(t).Detail != p.Detail {
					t.Errorf("it tells a saga that exists from one that does not: %d %s", b.status, b.body)
				}
			})
		}
	}
}

func TestARightThatIsTakenAwayIsGoneWithTheNextRequest(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	account := r.account("ada", r.ns)
	binding := r.bind(account, r.ns, "saga-viewer")
	c := call{method: "GET", path: "/v1/namespaces/NS/sagas", token: r.token(account, audience)}
	if a := r.do(c); a.status != http.StatusOK {
		t.Fatalf("before: %d %s", a.status, a.body)
	}
	r.ok(r.admin.Delete(t.Context(), binding))
	r.until("the right is gone", func() bool { return r.do(c).status == http.StatusForbidden }) // the API server itself looks a moment later
}

func TestTheCreatorOfASagaIsTheCallerAndNotTheOperator(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	account := r.account("orders", r.ns, "saga-editor")
	user := "system:serviceaccount:" + r.ns + ":orders"
	s := r.create(r.token(account, audience), "order-1042")
	if got := s.Annotations["saga.vextrus.io/created-by"]; got != user {
		t.Errorf("created by %q, want %q", got, user)
	}
	if len(s.Finalizers) != 1 {
		t.Errorf("finalizers %v", s.Finalizers)
	}
	a := r.do(call{method: "POST", path: "/v1/namespaces/NS/sagas", token: r.token(account, audience), header: key("k-2"),
		body: fmt.Sprintf(`{"metadata":{"name":"order-1043","annotations":{"saga.vextrus.io/created-by":"somebody-else"}},"spec":%s}`, spec)})
	if p := a.problem(t); a.status != http.StatusUnprocessableEntity || !strings.Contains(p.Detail, "created-by") {
		t.Errorf("signing for somebody else: %d %s", a.status, a.body)
	}
}

func TestNobodyButTheOperatorSignsASagaForSomebodyElse(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, as := range []string{r.ns, "saga-system"} { // one of its name elsewhere is another
		config, err := kubernetes(t).ServiceAccount(t.Context(), as, "saga-operator")
		r.ok(err)
		if as == r.ns {
			r.bind(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: as, Name: "saga-operator"}}, r.ns, "saga-editor")
		}
		got := r.createAs(config, "signed-in-"+as, map[string]string{"saga.vextrus.io/created-by": "grace"})
		want := "grace"
		if as == r.ns {
			want = "system:serviceaccount:" + as + ":saga-operator"
		}
		if got != want {
			t.Errorf("as %s/saga-operator: created by %q, want %q", as, got, want)
		}
	}
	if got := r.createAs(kubernetes(t).Config, "signed-by-admin", map[string]string{"saga.vextrus.io/created-by": "grace"}); got == "grace" {
		t.Errorf("the administrator has signed for somebody else: %q", got)
	}
}

func TestWhatHappensInAnotherNamespaceIsNotReadByItsUID(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	secret := uuid.NewString()
	r.shown(r.happened(secret, r.sagaStarted(secret, "elsewhere", "order-1"), attempted(1)))
	token := r.editor()
	r.create(token, "order-1")
	for _, name := range []string{"order-1", "order-2"} {
		for _, accept := range []string{"application/json", eventStream} {
			a := r.do(call{method: "GET", path: "/v1/namespaces/NS/sagas/" + name + "/history?uid=" + secret, token: token, header: http.Header{"Accept": {accept}}})
			if a.status != http.StatusNotFound || strings.Contains(string(a.body), "reserve") {
				t.Errorf("%s as %s: %d %s", name, accept, a.status, a.body)
			}
		}
	}
	a := r.do(call{method: "GET", path: "/v1/namespaces/elsewhere/sagas/order-1/history?uid=" + secret, token: token})
	if a.status != http.StatusForbidden {
		t.Errorf("in its own namespace: %d %s", a.status, a.body)
	}
}

func TestAKeptAnswerIsNotGivenToWhoHasLostTheRight(t *testing.T) {
	t.Parallel()
	access := &revocable{}
	r := newRig(t, func(o *operations.Options, _ *Options) { access.Access, o.Access = o.Access, access })
	c := call{method: "POST", path: sagas, token: r.editor(), header: key("k-1"), body: manifest("order-1")}
	for range 2 {
		if a := r.do(c); a.status != http.StatusCreated {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	access.taken.Store(true)
	if a := r.do(c); a.status != http.StatusForbidden || strings.Contains(string(a.body), "spec") {
		t.Errorf("without the right: %d %s", a.status, a.body)
	}
	access.taken.Store(false)
	if a := r.do(c); a.status != http.StatusCreated || a.header.Get("Idempotency-Replayed") != "true" { // and the refusal was not kept
		t.Errorf("with the right again: %d %s", a.status, a.body)
	}
}
