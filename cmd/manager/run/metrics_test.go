package run

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
)

func TestConfigRefusesPprofBeyondLoopback(t *testing.T) {
	t.Parallel()
	env := environ("DATABASE_URL", databaseURL)
	for _, address := range []string{":6060", "0.0.0.0:6060", "[::]:6060", "10.0.0.7:6060", "pod.example:6060", "6060"} {
		if _, err := Parse([]string{"--pprof-address", address}, env, t.Output()); err == nil || !strings.Contains(err.Error(), "--pprof-address") {
			t.Errorf("%s: %v, want an error that names --pprof-address", address, err)
		} else if address != "6060" && !strings.Contains(err.Error(), "kubectl port-forward") {
			t.Errorf("%s: the error does not say what to do: %v", address, err)
		}
	}
	for _, address := range []string{"127.0.0.1:6060", "[::1]:6060", "0"} {
		if _, err := Parse([]string{"--pprof-address", address}, env, t.Output()); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestConfigRefusesUselessMetricsCertificate(t *testing.T) {
	t.Parallel()
	env := environ("DATABASE_URL", databaseURL)
	for want, args := range map[string][]string{
		"belong together":   {"--metrics-tls-cert-file=tls.crt"},
		"loopback":          {"--metrics-address=127.0.0.1:8080", "--metrics-tls-cert-file=tls.crt", "--metrics-tls-key-file=tls.key"},
		"--metrics-address": {"--metrics-address=8080"},
	} {
		if _, err := Parse(args, env, t.Output()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want an error that says %q", args, err, want)
		}
	}
}

// TestMetricsAskClusterForAuthorization runs the operator with the rights that it is given.
func TestMetricsAskClusterForAuthorization(t *testing.T) {
	kubernetes := cluster.New(t, cluster.Options{})
	_, port, err := net.SplitHostPort(freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	address := "localhost:" + port // a name is not taken for a loopback address, whatever it resolves to
	log := &lockedBuffer{}
	stop := operatorProcess(t, log, throwaway.Database(t), "--kubeconfig", leastPrivileged(t, kubernetes), "--lease-namespace=saga-system", "--health-address=0",
		"--metrics-address", address, "--api-bind-address=0", "--log-format=text")
	good, bad := serviceAccountToken(t, kubernetes, "prometheus"), serviceAccountToken(t, kubernetes, "other")
	defer func() {
		if err := stop(); err != nil || t.Failed() || strings.Contains(log.String(), good) || strings.Contains(log.String(), bad) {
			t.Errorf("the operator ended: %v; its log, in which there should be no token:\n%s", err, log)
		}
	}()
	eventually(t, func() error {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
	scrape := func(token string) (status int, body string) { // until the cluster has answered in time
		eventually(t, func() error {
			if status, body = scrapeMetrics(t, "https://"+address, token); status == http.StatusServiceUnavailable {
				return fmt.Errorf("%d %s", status, body)
			}
			return nil
		})
		return status, body
	}
	forAPI := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"saga-operator"}}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "monitoring", Name: "prometheus"}}
	if err := newClient(t, kubernetes).SubResource("token").Create(t.Context(), account, forAPI); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		token string
		want  int
	}{
		"no token":                                  {"", http.StatusUnauthorized},
		"a token that is not the cluster's":         {"nonsense", http.StatusUnauthorized},
		"a token for another audience":              {forAPI.Status.Token, http.StatusUnauthorized},
		"a token without the right to read metrics": {good, http.StatusForbidden},
	} {
		if status, body := scrape(c.token); status != c.want || strings.Contains(body, "go_goroutines") {
			t.Errorf("%s: %d %.200s, want %d", name, status, body, c.want)
		}
	}
	if t.Failed() {
		return
	}
	bindMetricsReader(t, kubernetes, "prometheus")
	eventually(t, func() error {
		if status, body := scrape(good); status != http.StatusOK || !strings.Contains(body, "saga_attempts_in_flight") || !strings.Contains(body, "go_goroutines") {
			return fmt.Errorf("with the right: %d %s", status, body)
		}
		return nil
	})
	if status, body := scrape(bad); status != http.StatusForbidden {
		t.Errorf("a caller whom nothing was granted: %d %s", status, body)
	}
	if status, body := scrapeMetrics(t, "http://"+address, good); status == http.StatusOK || strings.Contains(body, "go_goroutines") {
		t.Errorf("by plain HTTP: %d %s", status, body)
	}
}

// serviceAccountToken is a token as the pods of a ServiceAccount in the namespace monitoring have it.
func serviceAccountToken(t *testing.T, kubernetes *cluster.Cluster, name string) string {
	t.Helper()
	config, err := kubernetes.ServiceAccount(t.Context(), "monitoring", name)
	if err != nil {
		t.Fatal(err)
	}
	return config.BearerToken
}

// bindMetricsReader lets a ServiceAccount of the namespace monitoring read metrics.
func bindMetricsReader(t *testing.T, kubernetes *cluster.Cluster, account string) {
	t.Helper()
	role, err := os.ReadFile("../../../config/rbac/metrics_reader_role.yaml")
	if err != nil {
		t.Fatal(err)
	}
	binding := fmt.Sprintf(`{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: scraper},
		roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: saga-metrics-reader}, subjects: [{kind: ServiceAccount, name: %s, namespace: monitoring}]}`, account)
	for _, manifest := range [][]byte{role, []byte(binding)} {
		if err := kubernetes.Apply(t.Context(), manifest); err != nil {
			t.Fatal(err)
		}
	}
}

// scrapeMetrics reads /metrics; the status is 0 if there is no response.
func scrapeMetrics(t *testing.T, base, token string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Timeout: patience, Transport: transport}).Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(body)
}
