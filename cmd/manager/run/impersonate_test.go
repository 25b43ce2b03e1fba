package run

import (
	"bytes"
	"crypto/tls"
	"net/http"
	"os"
	"testing"

	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
)

// TestOperatorImpersonatesUsersOfItsAPI has the whole operator with the rights that are shipped, first
// without the role for impersonation and then with it, as docs/api.md says.
func TestOperatorImpersonatesUsersOfItsAPI(t *testing.T) {
	kubernetes := cluster.New(t, cluster.Options{})
	address, log := freeAddress(t), &lockedBuffer{}
	stop := operatorProcess(t, log, throwaway.Database(t), "--kubeconfig", leastPrivileged(t, kubernetes), "--lease-namespace=saga-system", "--health-address=0",
		"--metrics-address=0", "--api-bind-address="+address, "--api-impersonate", "--log-format=text")
	defer func() {
		if err := stop(); err != nil || t.Failed() {
			t.Errorf("the operator ended: %v; its log:\n%s", err, log)
		}
	}()
	c := &apiClient{T: t, base: "https://" + address, token: starter(t, kubernetes)}
	c.http = &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}

	const step = `{"name":"reserve","http":{"method":"POST","url":"http://inventory.example/"}}`
	var status int
	var answer []byte
	eventually(t, func() (err error) { // until the API serves
		status, answer, err = c.do(http.MethodPost, "/v1/namespaces/shop/sagas", `{"metadata":{"name":"order-1"},"spec":{"suspend":true,"steps":[`+step+`]}}`,
			"Content-Type", "application/json", "Idempotency-Key", "k-1")
		return err
	})
	if status != http.StatusForbidden || !bytes.Contains(answer, []byte("cannot impersonate")) || !bytes.Contains(answer, []byte("bind the ClusterRole saga-impersonator")) {
		t.Fatalf("without the role: %d %s; want the missing right and what to do", status, answer)
	}
	role, err := os.ReadFile("../../../config/rbac/impersonator_role.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const binding = `{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: saga-impersonator},
		roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: saga-impersonator},
		subjects: [{kind: ServiceAccount, name: saga-operator, namespace: saga-system}]}`
	for _, manifest := range [][]byte{role, []byte(binding)} {
		if err := kubernetes.Apply(t.Context(), manifest); err != nil {
			t.Fatal(err)
		}
	}
	c.start("order-2", step)
}
