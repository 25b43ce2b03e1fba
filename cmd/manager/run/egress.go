package run

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vextrus/saga-operator/internal/egress"
)

const (
	// lookupTimeout bounds one look for the API server's addresses.
	lookupTimeout = 5 * time.Second
	// lookupEvery is how often they are looked for again: names are given other addresses, and API servers come and go.
	lookupEvery = time.Minute
	// lookupPause is the pause after a look that failed.
	lookupPause = 2 * time.Second
)

// apiServers knows the addresses of the API server, each with its port. Users' requests never go there, whatever the administrator allows: the operator stands
// where it can be reached, and may be trusted there for where it stands.
type apiServers struct {
	// configured are the hosts and ports by which the operator itself finds the API server.
	configured []string
	resolve    func(ctx context.Context, network, host string) ([]netip.Addr, error)
	// kube reads from the API server. What stands behind the Service by which pods find it are addresses of it too.
	kube client.Reader
	log  *slog.Logger

	known atomic.Pointer[[]netip.AddrPort]
	told  string
}

func newAPIServers(cfg *rest.Config, env func(string) (string, bool), kube client.Reader, log *slog.Logger) (*apiServers, error) {
	configured, err := configuredServers(cfg, env)
	if err != nil {
		return nil, err
	}
	return &apiServers{configured: configured, resolve: net.DefaultResolver.LookupNetIP, kube: kube, log: log}, nil
}

// egressPolicy says where users may have the operator connect to, be it to a participant or to a sink.
func egressPolicy(c Config, servers *apiServers) (*egress.Policy, error) {
	policy, err := egress.New(c.EgressAllow, c.EgressDeny)
	if err != nil {
		return nil, err
	}
	return policy.DenyAlso(servers.has), nil
}

// has reports whether an address is the API server's.
func (a *apiServers) has(to netip.AddrPort) bool {
	known := a.known.Load()
	return known != nil && slices.Contains(*known, to)
}

// await looks for the addresses until they are found, or ctx is done. No attempt may run before: it could go to the API server.
func (a *apiServers) await(ctx context.Context) {
	for ctx.Err() == nil {
		err := a.look(ctx)
		if err == nil {
			return
		}
		a.tell("waiting for the addresses of the API server, so that no participant and no sink can have them", err)
		select {
		case <-ctx.Done():
		case <-time.After(lookupPause):
		}
	}
}

// Start implements manager.Runnable: it looks again from time to time. As long as that fails what was known is denied.
func (a *apiServers) Start(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(lookupEvery):
		}
		if err := a.look(ctx); err != nil && ctx.Err() == nil {
			a.tell("the addresses of the API server could not be looked up again; those known are denied to participants and sinks", err)
		}
	}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: every replica connects to sinks.
func (*apiServers) NeedLeaderElection() bool { return false }

// tell logs an error when it is another than the last.
func (a *apiServers) tell(what string, err error) {
	if a.told != err.Error() {
		a.told = err.Error()
		a.log.Warn(what, "error", err)
	}
}

// look finds the addresses anew. Unless all of them are found, those of before stay.
func (a *apiServers) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var found []netip.AddrPort
	for _, server := range a.configured {
		addresses, err := a.addresses(ctx, server)
		if err != nil {
			return err
		}
		found = append(found, addresses...)
	}
	behind, err := a.behindService(ctx)
	if err != nil {
		return err
	}
	found = append(found, behind...)
	a.known.Store(&found)
	return nil
}

func (a *apiServers) addresses(ctx context.Context, server string) ([]netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(server)
	if err != nil {
		return nil, fmt.Errorf("reading the API server's address %q: %w; correct it in the kubeconfig", server, err)
	}
	addresses := []netip.Addr{}
	if literal, err := netip.ParseAddr(host); err == nil {
		addresses = append(addresses, literal)
	} else if addresses, err = a.resolve(ctx, "ip", host); err != nil {
		return nil, fmt.Errorf("resolving the API server's name %s: %w; have the name resolved, or name the API server by its address in the kubeconfig", host, err)
	}
	return withPort(addresses, port), nil
}

// behindService reads the addresses that the Service kubernetes stands for. Where there are none, or the operator may not read them, those of the configuration have to do.
func (a *apiServers) behindService(ctx context.Context) ([]netip.AddrPort, error) {
	slice := &discoveryv1.EndpointSlice{}
	err := a.kube.Get(ctx, client.ObjectKey{Namespace: "default", Name: "kubernetes"}, slice)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case apierrors.IsForbidden(err):
		a.tell("the addresses behind the Service kubernetes are not denied to participants and sinks: the operator may not read them; apply config/rbac/role.yaml", err)
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading EndpointSlice default/kubernetes at the API server: %w", err)
	}
	var found []netip.AddrPort
	for _, e := range slice.Endpoints {
		for _, text := range e.Addresses {
			address, err := netip.ParseAddr(text)
			if err != nil {
				continue // a name, which no endpoint of the API server is
			}
			for _, p := range slice.Ports {
				if p.Port != nil {
					found = append(found, withPort([]netip.Addr{address}, strconv.Itoa(int(*p.Port)))...)
				}
			}
		}
	}
	return found, nil
}

// withPort joins addresses and a port, in the form in which the policy asks for them.
func withPort(addresses []netip.Addr, port string) []netip.AddrPort {
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil
	}
	joined := make([]netip.AddrPort, len(addresses))
	for i, a := range addresses {
		joined[i] = netip.AddrPortFrom(a.Unmap().WithZone(""), uint16(p))
	}
	return joined
}

// configuredServers are the hosts and ports by which the configuration and, in a cluster, the environment name the API server.
func configuredServers(cfg *rest.Config, env func(string) (string, bool)) ([]string, error) {
	u, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("reading the API server's address %q: %w; correct it in the kubeconfig", cfg.Host, err)
	}
	found := []string{net.JoinHostPort(u.Hostname(), portOf(u))}
	host, _ := env("KUBERNETES_SERVICE_HOST")
	port, _ := env("KUBERNETES_SERVICE_PORT")
	if host != "" && port != "" {
		found = append(found, net.JoinHostPort(host, port))
	}
	return found, nil
}

func portOf(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "http":
		return "80"
	default:
		return "443"
	}
}
