// Package operator runs the real operator as a process of its own, for the demo, the benchmarks, and tests that kill it.
package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/rest"

	"github.com/vextrus/saga-operator/internal/guard"
	"github.com/vextrus/saga-operator/internal/ports"
	"github.com/vextrus/saga-operator/test/cluster"
)

const (
	// A machine may have much else to do. Nothing waits that long where all is well.
	readyTimeout = 10 * time.Minute
	stopTimeout  = 5 * time.Minute
	pollInterval = 50 * time.Millisecond
)

// Workshop holds the operator's binary and the files of its processes. However its owner ends, they end with it.
type Workshop struct {
	guard  *guard.Guard
	binary string

	mu      sync.Mutex
	started int
}

// NewWorkshop builds the operator.
func NewWorkshop(ctx context.Context) (*Workshop, error) {
	g, err := guard.New("operator")
	if err != nil {
		return nil, fmt.Errorf("preparing the operator: %w", err)
	}
	w := &Workshop{guard: g, binary: filepath.Join(g.Dir(), "manager")}
	if err := w.Build(ctx, "github.com/vextrus/saga-operator/cmd/manager", "manager"); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return w, nil
}

// Build builds a program of this repository into the workshop.
func (w *Workshop) Build(ctx context.Context, pkg, name string) error {
	out, err := exec.CommandContext(ctx, "go", "build", "-o", w.Path(name), pkg).CombinedOutput()
	if err != nil {
		return fmt.Errorf("building %s: %w\n%s", name, err, out)
	}
	return nil
}

// ErrNoCommit says that the repository does not hold a commit: it is a shallow clone, or no clone at all.
var ErrNoCommit = errors.New("this copy of the repository does not hold the commit")

// BuildAt builds a program of this repository as it was at a commit. It fails with ErrNoCommit where the commit is not at hand.
func (w *Workshop) BuildAt(ctx context.Context, commit, pkg, name string) error {
	root, err := exec.CommandContext(ctx, "git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		return fmt.Errorf("building %s at commit %s: %w: %w", name, commit, ErrNoCommit, err)
	}
	repository, source := strings.TrimSpace(string(root)), w.Path("source-of-"+name)
	if err := os.Mkdir(source, 0o755); err != nil {
		return fmt.Errorf("building %s at commit %s: %w", name, commit, err)
	}
	run := func(dir, program string, args ...string) error {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s at commit %s: %s: %w\n%s", name, commit, program, err, out)
		}
		return nil
	}
	if err := run(repository, "git", "cat-file", "-e", commit+"^{commit}"); err != nil {
		return fmt.Errorf("%w: %w", ErrNoCommit, err)
	}
	if err := run(repository, "git", "archive", "--output", source+".tar", commit); err != nil {
		return err
	}
	if err := run(source, "tar", "-xf", source+".tar"); err != nil {
		return err
	}
	return run(source, "go", "build", "-o", w.Path(name), pkg)
}

// Path is where a file of the workshop is.
func (w *Workshop) Path(name string) string { return filepath.Join(w.guard.Dir(), name) }

// Close ends every process and removes every file.
func (w *Workshop) Close() error { return w.guard.Close() }

// Options say how to run the operator.
type Options struct {
	// Config is the configuration of the user that the operator is.
	Config *rest.Config
	// DatabaseURL names its database.
	DatabaseURL string
	// Args are further flags. Loopback participants are allowed and no leader is elected unless they say otherwise.
	Args []string
	// Env has further environment variables, as NAME=value.
	Env []string
	// Binary is the program of the workshop to run; the operator of this source by default.
	Binary string
	// LogFile keeps its log where somebody can read it afterwards; by default it goes with the workshop.
	LogFile string
}

// Start starts the operator and returns at once.
func (w *Workshop) Start(ctx context.Context, o Options) (*Process, error) {
	kubeconfig, err := cluster.Kubeconfig(o.Config)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.started++
	name := fmt.Sprintf("operator-%d", w.started)
	w.mu.Unlock()
	path := w.Path(name + ".kubeconfig")
	if err := os.WriteFile(path, kubeconfig, 0o600); err != nil {
		return nil, fmt.Errorf("writing the operator's kubeconfig: %w", err)
	}
	health, err := ports.Draw(ctx)
	if err != nil {
		return nil, err
	}
	args := append([]string{"--kubeconfig", path, "--egress-allow", "127.0.0.0/8", "--leader-elect=false", "--health-address", health.Address(), "--metrics-address", "0", "--api-bind-address", "0"}, o.Args...)
	p, err := w.Run(name, Command{Binary: cmp.Or(o.Binary, "manager"), Args: args, Env: append([]string{"DATABASE_URL=" + o.DatabaseURL}, o.Env...), LogFile: o.LogFile, Health: "http://" + health.Address() + "/readyz"})
	if err != nil {
		health.Release()
		return nil, err
	}
	go func() {
		<-p.exited
		health.Release()
	}()
	return p, nil
}

// Command is a program of the workshop.
type Command struct {
	Binary  string
	Args    []string
	Env     []string
	LogFile string
	// Health is a URL that answers 200 when the program is ready.
	Health string
}

// Run starts a program of the workshop.
func (w *Workshop) Run(name string, c Command) (*Process, error) {
	if c.LogFile == "" {
		c.LogFile = w.Path(name + ".log")
	}
	log, err := os.OpenFile(c.LogFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("making the log of %s: %w", name, err)
	}
	defer log.Close()
	p := &Process{name: name, log: c.LogFile, health: c.Health, guard: w.guard, exited: make(chan struct{})}
	p.cmd = exec.Command(w.Path(c.Binary), c.Args...)
	p.cmd.Env = append(os.Environ(), c.Env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// A group of its own: Ctrl-C at a terminal is for the one who started it, who then stops it in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	if err := w.guard.Add(name, p.cmd.Process.Pid); err != nil {
		return nil, errors.Join(err, p.cmd.Process.Kill())
	}
	go func() {
		p.err = p.cmd.Wait()
		w.guard.Remove(name)
		close(p.exited)
	}()
	return p, nil
}

// Process is a running program.
type Process struct {
	name, log, health string
	cmd               *exec.Cmd
	guard             *guard.Guard
	exited            chan struct{}
	err               error // read after exited is closed
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// LogFile is where its log is.
func (p *Process) LogFile() string { return p.log }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Running reports whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Kill ends the process as a crash would, and returns when it has ended.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // one that has ended already is as dead as it gets
	<-p.exited
}

// Stop asks the process to end, and fails when it does not do so cleanly or in time.
func (p *Process) Stop() error {
	if !p.Running() {
		return nil
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping %s: %w", p.name, err)
	}
	select {
	case <-p.exited:
	case <-time.After(stopTimeout):
		p.Kill()
		return fmt.Errorf("stopping %s: it did not end within %s\n%s", p.name, stopTimeout, p.Tail())
	}
	if p.err != nil {
		return fmt.Errorf("stopping %s: %w\n%s", p.name, p.err, p.Tail())
	}
	return nil
}

// Tail returns the end of its log.
func (p *Process) Tail() string { return guard.Tail(p.log, 4000) }

// Readiness asks the process whether it is ready, and returns what it answers.
func (p *Process) Readiness(ctx context.Context) (ready bool, says string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.health, http.NoBody)
	if err != nil {
		return false, err.Error()
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return false, err.Error()
	}
	return resp.StatusCode == http.StatusOK, strings.TrimSpace(string(body))
}

// AwaitReady waits until the process says that it is ready.
func (p *Process) AwaitReady(ctx context.Context) error {
	return p.AwaitReadiness(ctx, func(ready bool, _ string) bool { return ready })
}

// AwaitReadiness waits until what the process says of its readiness satisfies want.
func (p *Process) AwaitReadiness(ctx context.Context, want func(ready bool, says string) bool) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		ready, says := p.Readiness(ctx)
		if want(ready, says) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w; it last said: %s\n%s", p.name, ctx.Err(), says, p.Tail())
		case <-p.exited:
			return fmt.Errorf("waiting for %s: it ended: %w\n%s", p.name, p.err, p.Tail())
		case <-tick.C:
		}
	}
}
