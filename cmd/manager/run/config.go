package run

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/vextrus/saga-operator/controllers"
	"github.com/vextrus/saga-operator/internal/egress"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/quota"
	"github.com/vextrus/saga-operator/internal/saga"
)

// Secret is a text that shows itself to nobody by accident: not in logs, not in JSON, not in errors.
type Secret string

const redacted = "[redacted]"

// String implements fmt.Stringer.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// GoString implements fmt.GoStringer.
func (s Secret) GoString() string { return s.String() }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText implements encoding.TextMarshaler.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Set implements flag.Value.
func (s *Secret) Set(v string) error {
	*s = Secret(v)
	return nil
}

// Config is what the operator is told by its flags and its environment.
type Config struct {
	DatabaseURL         Secret
	DatabaseConnections int
	Migrate             bool

	Workers          int
	SagaMemoryBytes  int64
	Concurrency      int
	Limits           saga.Limits
	Quotas           quota.Limits
	Namespaces       list
	EgressAllow      list
	EgressDeny       list
	MaxAnswerBytes   int64
	CallbackURL      string
	HistoryRetention time.Duration
	OutboxShards     int
	ShutdownGrace    time.Duration
	KeyRetention     time.Duration

	Kubeconfig    string
	KubeQPS       float64
	KubeBurst     int
	Events        bool
	LeaderElect   bool
	LeaseName     string
	LeaseSpace    string
	LeaseDuration time.Duration

	API apiConfig

	Metrics metricsConfig

	HealthAddress string
	PprofAddress  string
	LogLevel      slog.Level
	LogFormat     string
}

// Parse reads the settings: a flag wins over its environment variable, and that over the default. What is wrong with them is an error that names the
// flag or the variable; flag.ErrHelp means that the help has been written to out.
func Parse(args []string, env func(string) (string, bool), out io.Writer) (Config, error) {
	var c Config
	fs := flag.NewFlagSet("manager", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	c.bind(fs)
	if err := fromEnvironment(fs, env); err != nil {
		return c, err
	}
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		help(fs, out)
		return c, err
	case err != nil:
		return c, err
	case fs.NArg() > 0:
		return c, fmt.Errorf("there is no command or flag %q", fs.Arg(0))
	}
	return c, c.check()
}

// bind is the table of settings.
func (c *Config) bind(fs *flag.FlagSet) {
	fs.Var(&c.DatabaseURL, "database-url", "`URL` of the PostgreSQL database; prefer the variable, which other processes do not see")
	fs.IntVar(&c.DatabaseConnections, "database-connections", postgres.DefaultMaxConns, "connections to the database at most")
	fs.BoolVar(&c.Migrate, "migrate", true, "bring the database to the version that this binary knows before starting")

	fs.IntVar(&c.Workers, "workers", engine.DefaultWorkers, "participants that are called at once at most")
	fs.IntVar(&c.Concurrency, "concurrent-reconciles", controllers.DefaultConcurrency, "sagas that are reconciled at once at most")
	fs.Var(&c.Namespaces, "namespaces", "comma-separated `names` of the namespaces to watch; all when empty")
	fs.Var(&c.EgressAllow, "egress-allow", "comma-separated addresses or `CIDRs` that participants and sinks may have although they are denied by default")
	fs.Var(&c.EgressDeny, "egress-deny", "comma-separated addresses or `CIDRs` that participants and sinks may not have; the API server's is always one")
	fs.Int64Var(&c.SagaMemoryBytes, "saga-memory-bytes", 6*engine.DefaultMemory, "`bytes` that the states, definitions, requests and responses of sagas take in memory together; half of what others leave is for one namespace")
	fs.DurationVar(&c.Limits.MaxAttemptTimeout, "max-attempt-timeout", time.Minute, "maximum attemptTimeout of a new saga; participants that take longer should accept and reply later")
	fs.DurationVar(&c.Limits.MinBackoff, "min-backoff", 100*time.Millisecond, "minimum initialBackoff and maxBackoff of a new saga")
	fs.Int64Var(&c.Quotas.UnfinishedSagas, "max-unfinished-sagas", 10_000, "sagas of one namespace that have started and not ended at most, further ones wait; -1 for no limit; annotations of a Namespace change this quota and the next three for it")
	fs.Int64Var(&c.Quotas.UnfinishedBytes, "max-unfinished-bytes", 64<<20, "`bytes` of their specs together at most; -1 for no limit")
	fs.Int64Var(&c.Quotas.Sinks, "max-sinks", 100, "Sinks of one namespace that are published to at most, the oldest ones; -1 for no limit")
	fs.Int64Var(&c.Quotas.AttemptsPerSecond, "max-attempts-per-second", quota.Unlimited, "attempts that the sagas of one namespace start per second at most; -1 for no limit")
	fs.Int64Var(&c.MaxAnswerBytes, "max-answer-bytes", 1<<20, "size of a participant's answer at most, up to 8 MiB")
	fs.StringVar(&c.CallbackURL, "callback-url", "", "base `URL` of the HTTP API as participants reach it, for steps with completion: Callback; without it there are none")
	fs.DurationVar(&c.HistoryRetention, "history-retention", 0, "how long the history of a finished saga is kept, for example 2160h; 0 keeps it for good")
	fs.IntVar(&c.OutboxShards, "outbox-shards", outbox.DefaultShards, "parts by key in which a new sink is published, and so replicas that share it at most; 1 to 64")
	fs.DurationVar(&c.KeyRetention, "key-retention", engine.DefaultKeyRetention, "how long participants remember idempotency keys: what may have happened is not sent again under an older one")
	fs.DurationVar(&c.ShutdownGrace, "shutdown-grace", 20*time.Second, "how long attempts under way may go on when the operator is told to stop")

	fs.StringVar(&c.Kubeconfig, "kubeconfig", "", "`path` of a kubeconfig; in a cluster none is needed")
	fs.Float64Var(&c.KubeQPS, "kube-qps", -1, "requests to the API server per second at most; -1 leaves that to the API server's own fairness")
	fs.IntVar(&c.KubeBurst, "kube-burst", 200, "requests to the API server at once at most where kube-qps limits them")
	fs.BoolVar(&c.Events, "events", true, "make a Kubernetes event for each change of a saga's phase")
	fs.BoolVar(&c.LeaderElect, "leader-elect", true, "wait until no other replica leads")
	fs.StringVar(&c.LeaseName, "lease-name", "saga-operator", "name of the lease by which the leader is elected")
	fs.StringVar(&c.LeaseSpace, "lease-namespace", "", "namespace of that lease; the operator's own by default")
	fs.DurationVar(&c.LeaseDuration, "lease-duration", 30*time.Second, "how long a leader that is not heard of keeps the lease")

	fs.StringVar(&c.API.Address, "api-bind-address", ":8443", "`address` of the HTTP API; 0 for none")
	fs.StringVar(&c.API.CertFile, "api-tls-cert-file", "", "`path` of the API's certificate, read again when it changes; without one it signs a certificate itself, for development")
	fs.StringVar(&c.API.KeyFile, "api-tls-key-file", "", "`path` of the key of that certificate")
	c.API.Audiences = list{"saga-operator"}
	fs.Var(&c.API.Audiences, "api-audiences", "comma-separated `audiences` of the tokens that the API takes; empty for those of the API server itself")
	fs.Float64Var(&c.API.UserRate, "api-user-rate", 50, "requests to the API that one user may make per second, after a burst of twice as many")
	fs.Int64Var(&c.API.KeptBytes, "api-kept-bytes", 256<<20, "`bytes` of answers that are kept for 24 hours for one user's idempotency keys in one namespace; new keys are refused beyond")
	fs.Int64Var(&c.API.MemoryBytes, "api-memory-bytes", 96<<20, "`bytes` that requests to the API take in memory together; half of what others leave is for one tenant")
	fs.BoolVar(&c.API.Impersonate, "api-impersonate", false, "write sagas in the name and with the rights of the API's users, by the constrained impersonation of Kubernetes 1.36 and newer; needs the ClusterRole saga-impersonator")
	fs.BoolVar(&c.API.InsecureHTTP, "api-insecure-http", false, "serve the API without TLS, on a loopback address only")

	fs.StringVar(&c.HealthAddress, "health-address", ":8081", "`address` of /healthz and /readyz; 0 for none")
	fs.StringVar(&c.Metrics.Address, "metrics-address", ":8444", "`address` of /metrics: HTTPS for callers whom the cluster allows to get it, plain HTTP for all callers on a loopback address; 0 for none")
	fs.StringVar(&c.Metrics.CertFile, "metrics-tls-cert-file", "", "`path` of the certificate of /metrics, read again when it changes; without one the operator signs a certificate itself, which Prometheus cannot check")
	fs.StringVar(&c.Metrics.KeyFile, "metrics-tls-key-file", "", "`path` of the key of that certificate")
	fs.StringVar(&c.PprofAddress, "pprof-address", "0", "loopback `address` of /debug/pprof, such as 127.0.0.1:6060, reached with kubectl port-forward; 0 for none")
	fs.TextVar(&c.LogLevel, "log-level", slog.LevelInfo, "least `level` that is logged: debug, info, warn or error")
	fs.StringVar(&c.LogFormat, "log-format", "json", "json or text")
}

// environment names the variable of a setting.
func environment(flagName string) string {
	name := strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
	switch flagName {
	case "database-url", "kubeconfig": // everybody's names for them
		return name
	default:
		return "SAGA_" + name
	}
}

func fromEnvironment(fs *flag.FlagSet, env func(string) (string, bool)) (err error) {
	fs.VisitAll(func(f *flag.Flag) {
		name := environment(f.Name)
		// A list of kubeconfigs is for client-go to read; a single path comes to the same.
		if v, ok := env(name); ok && err == nil && f.Name != "kubeconfig" {
			if e := f.Value.Set(v); e != nil {
				err = fmt.Errorf("invalid value for the variable %s: %w", name, e)
			}
		}
	})
	return err
}

func help(fs *flag.FlagSet, out io.Writer) {
	fmt.Fprint(out, `manager [manager] [flags]   run the saga operator
manager migrate [flags]     bring the database to the version that this binary knows
manager grants ROLE         print the SQL that gives a role what the operator needs to run, for whoever owns the schema
manager projections list [flags]              show the read models: how far they are, and at which event they have stopped
manager projections rebuild NAME [flags]      build a read model anew beside the one that is live, which it then replaces
manager projections retry NAME [flags]        have a stopped one try its event again
manager projections skip NAME REASON [flags]  have it go on without that event, for good; --event ID says which
manager projections remove NAME [flags]       end one whose code is gone, so that retention waits for it no more
manager outbox sinks [flags]                    show the sinks: what waits for each, its dead letters, and why it takes nothing
manager outbox list [SELECTION] [flags]         show the messages that a sink did not take, and those that wait behind them
manager outbox retry SELECTION [flags]          have some of them tried again now, dead letters too
manager outbox drop REASON SELECTION [flags]    have some of them never be published, for good
manager events list [SUBSCRIPTION] [flags]      show the dead letters of durable subscriptions: the events that a handler has failed at for good
manager events retry SUBSCRIPTION ID [flags]    have one of them tried again, and what waits behind it
manager events drop SUBSCRIPTION ID REASON [flags]   have the subscription do without it, for good
manager abandon UID --reason TEXT [--by NAME] [flags]   end a saga as it is, permanently: the operator does nothing more for it
manager version             say which version this is

SELECTION is --all, or one or more of --id ID,… --sink NAME --older-than 1h --dead.

Each flag can be given by the environment variable that is named beside it; the flag wins.

`)
	fs.VisitAll(func(f *flag.Flag) {
		kind, usage := flag.UnquoteUsage(f)
		fmt.Fprintf(out, "  --%s %s  (%s)\n        %s", f.Name, kind, environment(f.Name), usage)
		if f.DefValue != "" {
			fmt.Fprintf(out, " (default %s)", f.DefValue)
		}
		fmt.Fprintln(out)
	})
}

func (c *Config) check() error {
	const (
		minSagaMemory = 128 << 20
		maxAnswer     = 8 << 20
		maxShards     = 64
	)
	switch {
	case c.DatabaseURL == "":
		return errors.New("--database-url (or DATABASE_URL) is required, for example postgres://saga@localhost:5432/saga")
	case c.DatabaseConnections < 2:
		return errors.New("--database-connections has to be at least 2")
	case c.Limits.MaxAttemptTimeout < saga.DefaultAttemptTimeout || c.Limits.MinBackoff < 0 || c.Limits.MinBackoff > saga.DefaultInitialBackoff:
		return fmt.Errorf("--max-attempt-timeout has to be at least %s and --min-backoff at most %s: steps that ask for nothing have these", saga.DefaultAttemptTimeout, saga.DefaultInitialBackoff)
	case c.Workers < 1, c.Concurrency < 1:
		return errors.New("--workers and --concurrent-reconciles have to be at least 1")
	case c.MaxAnswerBytes < 1 || c.MaxAnswerBytes > maxAnswer:
		return fmt.Errorf("--max-answer-bytes has to be from 1 to %d", maxAnswer)
	case c.SagaMemoryBytes < minSagaMemory:
		return fmt.Errorf("--saga-memory-bytes has to be at least %d: the largest saga has to fit", minSagaMemory)
	case c.OutboxShards < 1 || c.OutboxShards > maxShards:
		return fmt.Errorf("--outbox-shards has to be from 1 to %d", maxShards)
	case c.LeaseDuration < 5*time.Second:
		return errors.New("--lease-duration has to be at least 5s")
	case c.HistoryRetention < 0:
		return errors.New("--history-retention cannot be negative; 0 keeps the history for good")
	case c.KeyRetention < time.Minute:
		return errors.New("--key-retention has to be at least 1m")
	case c.ShutdownGrace < 0:
		return errors.New("--shutdown-grace cannot be negative")
	case c.LogFormat != "json" && c.LogFormat != "text":
		return errors.New("--log-format has to be json or text")
	}
	if err := errors.Join(c.checkQuotas(), c.API.check(), c.Metrics.check(), checkPprofAddress(c.PprofAddress)); err != nil {
		return err
	}
	if _, err := egress.New(c.EgressAllow, c.EgressDeny); err != nil {
		return fmt.Errorf("--egress-allow or --egress-deny: %w", err)
	}
	return checkCallbackURL(c.CallbackURL)
}

func (c *Config) checkQuotas() error {
	for _, q := range []struct {
		flag         string
		value, least int64
	}{
		{"max-unfinished-sagas", c.Quotas.UnfinishedSagas, 0},
		{"max-unfinished-bytes", c.Quotas.UnfinishedBytes, 0},
		{"max-sinks", c.Quotas.Sinks, 0},
		{"max-attempts-per-second", c.Quotas.AttemptsPerSecond, 1},
	} {
		if q.value < q.least && q.value != quota.Unlimited {
			return fmt.Errorf("--%s has to be at least %d, or %d for no limit", q.flag, q.least, quota.Unlimited)
		}
	}
	return nil
}

// list is a comma-separated flag.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(v string) error {
	*l = nil
	for s := range strings.SplitSeq(v, ",") {
		if s = strings.TrimSpace(s); s != "" {
			*l = append(*l, s)
		}
	}
	return nil
}

// watches reports whether a namespace is to be watched.
func (c *Config) watches(namespace string) bool {
	return len(c.Namespaces) == 0 || slices.Contains(c.Namespaces, namespace)
}
