package run

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vextrus/saga-operator/test/cluster"
)

func TestTheAPIServerIsFoundWhereverItIsNamed(t *testing.T) {
	t.Parallel()
	inCluster := environ("KUBERNETES_SERVICE_HOST", "10.96.0.1", "KUBERNETES_SERVICE_PORT", "443")
	got, err := configuredServers(&rest.Config{Host: "https://10.1.2.3:6443"}, inCluster)
	if diff := cmp.Diff([]string{"10.1.2.3:6443", "10.96.0.1:443"}, got); diff != "" || err != nil {
		t.Errorf("in a cluster (-want +got), %v:\n%s", err, diff)
	}
	for host, want := range map[string]string{
		"https://[fd00::1]": "[fd00::1]:443", "10.1.2.3:8443": "10.1.2.3:8443", "http://127.0.0.1": "127.0.0.1:80", "https://api.example/k8s": "api.example:443",
	} {
		if got, err := configuredServers(&rest.Config{Host: host}, environ()); err != nil || strings.Join(got, " ") != want {
			t.Errorf("host %s: found are %v (%v), want %s", host, got, err, want)
		}
	}
	if _, err := configuredServers(&rest.Config{Host: "://"}, environ()); err == nil || !strings.Contains(err.Error(), "kubeconfig") {
		t.Errorf("an address that cannot be read: %v", err)
	}
}

// TestTheAPIServerIsDeniedWithEverythingBehindItsService asks a real API server, as the operator's own account.
func TestTheAPIServerIsDeniedWithEverythingBehindItsService(t *testing.T) {
	t.Parallel()
	kubernetes := cluster.New(t, cluster.Options{})
	c := Config{Kubeconfig: leastPrivileged(t, kubernetes), EgressAllow: list{"0.0.0.0/0", "::/0"}}
	cfg, err := kubeConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	own, err := client.New(cfg, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	log := &lockedBuffer{}
	servers, err := newAPIServers(cfg, environ("KUBERNETES_SERVICE_HOST", "10.96.0.1", "KUBERNETES_SERVICE_PORT", "443"), own, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	policy, err := egressPolicy(c, servers)
	if err != nil {
		t.Fatal(err)
	}
	self := strings.Trim(strings.TrimPrefix(cfg.Host, "https:"), "/")
	denied := func(want map[string]bool) {
		t.Helper()
		if err := servers.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		for address, want := range want {
			if err := policy.Check(netip.MustParseAddrPort(address)); (err != nil) != want {
				t.Errorf("%s: %v, want it denied: %t", address, err, want)
			}
		}
	}
	denied(map[string]bool{self: true, "10.96.0.1:443": true, "10.96.0.1:80": false, "192.0.2.1:6443": false})

	admin := newClient(t, kubernetes)
	slice := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: new("https"), Port: new(int32(6443))}}}
	slice.ObjectMeta = metav1.ObjectMeta{Namespace: "default", Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}}
	slice.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.1"}}}
	if err := admin.Create(t.Context(), slice); err != nil {
		t.Fatal(err)
	}
	denied(map[string]bool{self: true, "192.0.2.1:6443": true, "192.0.2.1:80": false, "192.0.2.2:6443": false})
	slice.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.2"}}} // another takes its place
	if err := admin.Update(t.Context(), slice); err != nil {
		t.Fatal(err)
	}
	denied(map[string]bool{self: true, "192.0.2.1:6443": false, "192.0.2.2:6443": true})
	if text := log.String(); text != "" {
		t.Errorf("the operator's account may not read where the API server is:\n%s", text)
	}
}

func TestANameOfTheAPIServerThatIsNotResolvedIsWaitedFor(t *testing.T) {
	t.Parallel()
	log := &lockedBuffer{}
	servers, err := newAPIServers(&rest.Config{Host: "https://api.example"}, environ(), noEndpoints{}, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	servers.resolve = func(context.Context, string, string) ([]netip.Addr, error) {
		if asked++; asked == 1 {
			return nil, errors.New("no such host")
		}
		return []netip.Addr{netip.MustParseAddr("192.0.2.7")}, nil
	}
	servers.await(t.Context())
	if address := netip.MustParseAddrPort("192.0.2.7:443"); asked != 2 || !servers.has(address) {
		t.Errorf("after %d looks %s is denied: %t", asked, address, servers.has(address))
	}
	for _, want := range []string{"api.example", "no such host", "kubeconfig"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, log.String())
		}
	}
	// What was known stays denied while it cannot be looked up again.
	servers.resolve = func(context.Context, string, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }
	if err := servers.look(t.Context()); err == nil || !servers.has(netip.MustParseAddrPort("192.0.2.7:443")) {
		t.Errorf("a look that failed (%v) forgot the addresses", err)
	}
}

// noEndpoints is an API server that has nothing.
type noEndpoints struct{ client.Reader }

func (noEndpoints) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return apierrors.NewNotFound(discoveryv1.Resource("endpointslices"), "kubernetes")
}
