package run

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
)

// TestOperatorHidesFormerNamespaceHistory runs the whole operator in a cluster that deletes namespaces.
func TestOperatorHidesFormerNamespaceHistory(t *testing.T) {
	kubernetes := cluster.New(t, cluster.Options{ControllerManager: true})
	address := freeAddress(t)
	participants := httptest.NewServer(newLateService(t))
	t.Cleanup(participants.Close)
	log := &lockedBuffer{}
	stop := operatorProcess(t, log, throwaway.Database(t), "--kubeconfig", leastPrivileged(t, kubernetes), "--lease-namespace=saga-system", "--health-address=0",
		"--metrics-address=0", "--api-bind-address="+address, "--egress-allow=127.0.0.0/8", "--log-format=text")
	defer func() {
		if err := stop(); err != nil || t.Failed() {
			t.Errorf("the operator ended: %v; its log:\n%s", err, log)
		}
	}()
	c := &apiClient{T: t, base: "https://" + address, token: starter(t, kubernetes)}
	c.http = &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	c.start("order-1", fmt.Sprintf(`{"name":"reserve","http":{"method":"POST","url":"%s/reserve"}}`, participants.URL))
	c.ends("order-1", "Completed")
	kube := newClient(t, kubernetes)
	o := &v1.Saga{}
	eventually(t, func() error {
		return kube.Get(t.Context(), types.NamespacedName{Namespace: "shop", Name: "order-1"}, o)
	})
	eventually(t, func() error { return kube.Delete(t.Context(), o) })
	c.gone("order-1")
	const history = "/v1/namespaces/shop/sagas/order-1/history"
	if status, page := c.ask(http.MethodGet, history, ""); status != http.StatusOK || !bytes.Contains(page, []byte("SagaCompleted")) {
		t.Fatalf("its owner reads %d %s", status, page)
	}
	ns := &corev1.Namespace{}
	ns.Name = "shop"
	eventually(t, func() error { return kube.Delete(t.Context(), ns) })
	eventually(t, func() error {
		err := kube.Get(t.Context(), types.NamespacedName{Name: "shop"}, ns)
		switch {
		case err == nil:
			return errors.New("namespace shop still exists")
		case apierrors.IsNotFound(err):
			return nil
		}
		return err
	})
	c.token = starter(t, kubernetes) // it makes the namespace again, with another account of the same name
	c.start("order-2", fmt.Sprintf(`{"name":"reserve","http":{"method":"POST","url":"%s/reserve"}}`, participants.URL))
	c.ends("order-2", "Completed")
	for _, path := range []string{history, history + "?uid=" + string(o.UID)} {
		for _, accept := range []string{"application/json", "text/event-stream"} {
			if status, page := c.ask(http.MethodGet, path, "", "Accept", accept); status != http.StatusNotFound || bytes.Contains(page, []byte("reserve")) {
				t.Errorf("the new owner reads %s as %s: %d %s", path, accept, status, page)
			}
		}
	}
}

// gone waits until the object of a saga is gone.
func (c *apiClient) gone(name string) {
	c.Helper()
	eventually(c.T, func() error {
		status, answer, err := c.do(http.MethodGet, "/v1/namespaces/shop/sagas/"+name, "")
		if err == nil && status != http.StatusNotFound {
			err = fmt.Errorf("answered with %d %s", status, answer)
		}
		return err
	})
}
