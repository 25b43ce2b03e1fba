package run

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
)

// TestOperatorIgnoresJumpOfItsClock sets the clock of the operator's machine forward by more than a day.
// A deadline, a callback, a finished saga's time to live and an idempotency key must not expire.
func TestOperatorIgnoresJumpOfItsClock(t *testing.T) {
	kubernetes := cluster.New(t, cluster.Options{})
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	admin, err := client.New(kubernetes.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	urls := make(chan string, 1)
	participants := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if url := r.Header.Get("Saga-Callback"); url != "" {
			urls <- url
			w.WriteHeader(http.StatusAccepted)
		}
	}))
	t.Cleanup(participants.Close)
	address, log := freeAddress(t), &lockedBuffer{}
	set, stop := clockedProcess(t, log, throwaway.Database(t), "--kubeconfig", leastPrivileged(t, kubernetes), "--lease-namespace=saga-system", "--health-address=0",
		"--metrics-address=0", "--api-bind-address="+address, "--callback-url=https://"+address, "--egress-allow=127.0.0.0/8", "--log-format=text")
	defer func() {
		if err := stop(); err != nil || t.Failed() {
			t.Errorf("the operator ended: %v; its log:\n%s", err, log)
		}
	}()
	c := &apiClient{T: t, base: "https://" + address, token: starter(t, kubernetes)}
	c.http = &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}

	manifest := func(name, spec string) string {
		return fmt.Sprintf(`{"metadata":{"name":%q},"spec":{%s}}`, name, spec)
	}
	waits := manifest("waits", fmt.Sprintf(`"deadline":"45m","steps":[{"name":"pay","attemptTimeout":"30m","http":{"method":"POST","url":%q,"completion":"Callback","callbackTimeout":"40m"}}]`, participants.URL))
	done := manifest("done", fmt.Sprintf(`"ttlAfterFinished":"30m","steps":[{"name":"ship","http":{"method":"POST","url":%q}}]`, participants.URL))
	for _, body := range []string{waits, done} {
		c.created(body)
	}
	callback := <-urls
	c.ends("done", "Completed")

	set(25 * time.Hour)
	eventually(t, func() error {
		if !strings.Contains(log.String(), "one clock was set") {
			return errors.New("the log does not report the clock")
		}
		return nil
	})
	for _, name := range []string{"waits", "done"} { // each is looked at again
		o := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: v1.GroupVersion.String(), Kind: "Saga"}}
		o.Namespace, o.Name = "shop", name
		if err := admin.Patch(t.Context(), o, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"looked":"again"}}}`))); err != nil {
			t.Fatal(err)
		}
	}
	c.start("later", fmt.Sprintf(`{"name":"ship","http":{"method":"POST","url":%q}}`, participants.URL))
	c.ends("later", "Completed") // the operator works on, and has had the time to expire what it would
	if !c.created(done) {
		t.Error("the idempotency key does not count any more")
	}
	if err := callBack(t.Context(), c.http, callback, `{"outcome":"Succeeded"}`); err != nil {
		t.Fatalf("the callback does not count any more: %v", err)
	}
	c.ends("waits", "Completed")
	if status, answer := c.ask(http.MethodGet, "/v1/namespaces/shop/sagas/done", ""); status != http.StatusOK {
		t.Errorf("the finished saga is gone: %d %s", status, answer)
	}
	_, history := c.ask(http.MethodGet, "/v1/namespaces/shop/sagas/waits/history", "")
	if tomorrow := time.Now().Add(24 * time.Hour); bytes.Contains(history, []byte(tomorrow.Format(time.DateOnly))) {
		t.Errorf("the history has times of the clock that was set: %s", history)
	}
}

// created creates a saga under a key of its own, and reports whether the response is a stored one.
func (c *apiClient) created(body string) (replayed bool) {
	c.Helper()
	eventually(c.T, func() error {
		req, err := http.NewRequestWithContext(c.Context(), http.MethodPost, c.base+"/v1/namespaces/shop/sagas", strings.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+c.token)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", fmt.Sprint("key-", len(body)))
		res, err := c.http.Do(req)
		if err != nil {
			return err
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusCreated {
			return fmt.Errorf("creating a saga: %s", res.Status)
		}
		replayed = res.Header.Get("Idempotency-Replayed") == "true"
		return nil
	})
	return replayed
}
