package run

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"time"

	"k8s.io/client-go/rest"

	"github.com/vextrus/saga-operator/internal/egress"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/participant"
	participanthttp "github.com/vextrus/saga-operator/internal/participant/http"
	"github.com/vextrus/saga-operator/internal/participant/message"
)

// lookupTimeout bounds the resolution of the API server's name.
const lookupTimeout = 5 * time.Second

// participants are the kinds of participant that this operator has. A new kind is one more line here.
func participants(c Config, policy *egress.Policy, sinks message.Sinks, tokens *engine.Callbacks) participant.Registry {
	return participant.Registry{
		participanthttp.Kind: participanthttp.New(participanthttp.Options{
			Egress: policy, MaxAnswerBytes: c.MaxAnswerBytes, UserAgent: "saga-operator/" + Version, Callbacks: callbacks(c, tokens),
		}),
		message.Kind: message.New(sinks, engine.SourceOf),
	}
}

// egressPolicy says where users may have the operator connect to, be it to a participant or to a sink.
func egressPolicy(c Config, cfg *rest.Config, log *slog.Logger) (*egress.Policy, error) {
	return egress.New(c.EgressAllow, slices.Concat(c.EgressDeny, apiServers(cfg, os.LookupEnv, log)))
}

// apiServers returns the addresses of the API server, each with its port. Users' requests never go there, whatever the administrator allows: the
// operator stands where it can be reached, and may be trusted there for where it stands.
func apiServers(cfg *rest.Config, env func(string) (string, bool), log *slog.Logger) []string {
	var found []string
	add := func(host, port string) {
		for _, a := range addresses(host, log) {
			if p, err := strconv.ParseUint(port, 10, 16); err == nil {
				found = append(found, netip.AddrPortFrom(a, uint16(p)).String())
			}
		}
	}
	if u, err := url.Parse(cfg.Host); err == nil && u.Host != "" {
		add(u.Hostname(), portOf(u))
	} else if host, port, err := net.SplitHostPort(cfg.Host); err == nil {
		add(host, port)
	}
	host, _ := env("KUBERNETES_SERVICE_HOST")
	port, _ := env("KUBERNETES_SERVICE_PORT")
	if host != "" && port != "" {
		add(host, port)
	}
	return found
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

func addresses(host string, log *slog.Logger) []netip.Addr {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		log.Warn("the API server's name could not be resolved; participants and sinks at its address are not denied", "error", fmt.Errorf("resolving %s: %w", host, err))
	}
	return found
}
