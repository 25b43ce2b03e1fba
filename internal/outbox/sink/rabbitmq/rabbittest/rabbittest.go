// Package rabbittest runs RabbitMQ for tests: a server of its own, in a temporary directory, on free ports of the loopback address, gone with the process that started it.
//
// It needs an installed rabbitmq-server. Where there is none, tests are skipped with a line that says so; where CI is true, they fail.
package rabbittest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/vextrus/saga-operator/internal/guard"
	"github.com/vextrus/saga-operator/internal/outbox/sink/sinktest"
	"github.com/vextrus/saga-operator/internal/ports"
)

// What a server has. Both users have the same password, which no error may show.
const (
	// Username may do everything, in both virtual hosts; Reader may only read, and only in "/".
	Username = "saga"
	Reader   = "reader"
	Password = sinktest.Secret
	// OtherVHost is a virtual host besides "/".
	OtherVHost = "shop/eu"
	// MaxMessageBytes is how large a message may be.
	MaxMessageBytes = 1 << 20
)

const (
	// startTimeout and connectTimeout are for machines that have other things to do, too.
	startTimeout   = 5 * time.Minute
	connectTimeout = 2 * time.Minute
	pause          = 20 * time.Millisecond
	logTail        = 4000 // bytes of the server's log in an error
	tries          = 3
)

// announce has a server write a file once it is running. It takes connections before, but no commands: of those this is the condition.
const announce = `Say = fun(Say) -> case catch rabbit:is_running() of true -> ok = file:write_file(%q, <<>>); _ -> timer:sleep(20), Say(Say) end end, spawn(fun() -> Say(Say) end).`

// errMissing says that there is nothing to run.
var errMissing = errors.New("rabbitmq-server is not installed (Debian: apt install --no-install-recommends rabbitmq-server)")

// Server is a RabbitMQ server. Start, Stop and Close are not to be called concurrently.
type Server struct {
	guard      *guard.Guard
	bin        string
	credential *syscall.Credential
	ports      struct{ amqp, node, epmd *ports.Port } // held over restarts

	server, epmd *process
}

// Start starts a server. The caller must Close it. If the caller dies without doing so, the server is ended and its data is removed all the same.
func Start(ctx context.Context) (*Server, error) {
	bin, err := find()
	if err != nil {
		return nil, err
	}
	g, err := guard.New("rabbitmq")
	if err != nil {
		return nil, fmt.Errorf("preparing a RabbitMQ server: %w", err)
	}
	s := &Server{guard: g, bin: bin}
	if s.credential, err = serverUser(); err == nil {
		// Somebody who draws no ports may take one before the server does.
		for range tries {
			if err = s.create(ctx); err == nil || ctx.Err() != nil {
				break
			}
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// find returns the directory of the server's scripts: not that of Debian's wrappers, which insist on a user of their own.
func find() (string, error) {
	places := []string{"/usr/lib/rabbitmq/bin", "/opt/homebrew/sbin", "/usr/local/sbin"}
	if path, err := exec.LookPath("rabbitmq-server"); err == nil {
		places = append(places, filepath.Dir(path))
	}
	for _, dir := range places {
		if _, err := os.Stat(filepath.Join(dir, "rabbitmq-server")); err == nil {
			return dir, nil
		}
	}
	return "", errMissing
}

// create makes the server's files and starts it on fresh ports.
func (s *Server) create(ctx context.Context) (err error) {
	s.end()
	for _, port := range []**ports.Port{&s.ports.amqp, &s.ports.node, &s.ports.epmd} {
		(*port).Release()
		if *port, err = ports.Draw(ctx); err != nil {
			return err
		}
	}
	if err := s.write(); err != nil {
		return err
	}
	epmd, err := exec.LookPath("epmd")
	if err != nil {
		return fmt.Errorf("starting epmd, with which Erlang's programs find each other: %w", err)
	}
	cmd := s.command(context.WithoutCancel(ctx), epmd)
	// The guard knows its processes by their command line, and epmd's would say nothing.
	cmd.Args[0] = filepath.Join(s.home(), "epmd")
	if s.epmd, err = s.launch("epmd", cmd); err != nil {
		return err
	}
	return s.Start(ctx)
}

func (s *Server) home() string { return filepath.Join(s.guard.Dir(), "server") }
func (s *Server) name() string { return "saga" + strconv.Itoa(s.ports.amqp.Number) }

// Address is host:port of the server.
func (s *Server) Address() string { return s.ports.amqp.Address() }

// URL leads to virtual host "/", without credentials.
func (s *Server) URL() string { return "amqp://" + s.Address() }

// LogFile is where the server writes its log.
func (s *Server) LogFile() string { return filepath.Join(s.guard.Dir(), "log") }

// command is a program run as the server's user, in a session of its own: an interrupt typed at the terminal is for the caller to handle.
func (s *Server) command(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = s.home()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: s.credential}
	in := func(name string) string { return filepath.Join(s.home(), name) }
	// Nothing of the caller's, nor of a server that is installed on this machine.
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + s.home(), "LC_ALL=C.UTF-8", "TZ=UTC",
		"ERL_EPMD_ADDRESS=127.0.0.1", "ERL_EPMD_PORT=" + strconv.Itoa(s.ports.epmd.Number),
		// No epmd but ours, which ends with us; the node is not to be reached from elsewhere, and a command waits for it for two minutes.
		"ERL_AFLAGS=-start_epmd false -kernel inet_dist_use_interface {127,0,0,1} net_setuptime 120",
		"RABBITMQ_NODENAME=" + s.name() + "@localhost", "RABBITMQ_DIST_PORT=" + strconv.Itoa(s.ports.node.Number),
		"RABBITMQ_CONF_ENV_FILE=/dev/null", "RABBITMQ_CONFIG_FILE=" + in("rabbitmq.conf"),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + in("enabled_plugins"), "RABBITMQ_PID_FILE=" + in("pid"),
		"RABBITMQ_MNESIA_BASE=" + in("data"), "RABBITMQ_LOG_BASE=" + in("log"),
		"detached=yes", // the script is to become the server, and not to wait for it
	}
	return cmd
}

// Start starts the server again after Stop, with the same data on the same ports. It returns when the server takes connections and commands.
func (s *Server) Start(ctx context.Context) error {
	if s.server.running() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	// A server ends at once where epmd does not answer, or has not noticed yet that the server before has ended.
	err := s.await(ctx, s.epmd, "epmd", func() error { return s.nameIsFree(ctx) })
	if err != nil {
		return err
	}
	if err := os.RemoveAll(s.ready()); err != nil {
		return fmt.Errorf("preparing the start of a server: %w", err)
	}
	cmd := s.command(context.WithoutCancel(ctx), filepath.Join(s.bin, "rabbitmq-server"), "-eval", fmt.Sprintf(announce, s.ready()))
	if s.server, err = s.launch("rabbitmq", cmd); err != nil {
		return err
	}
	return s.await(ctx, s.server, "rabbitmq-server", func() error {
		if _, err := os.Stat(s.ready()); err != nil {
			return err
		}
		conn, err := s.Connect()
		if err == nil {
			err = conn.Close()
		}
		return err
	})
}

// ready is the file that the server writes when it takes commands.
func (s *Server) ready() string { return filepath.Join(s.home(), "ready") }

// await asks again and again whether a process is ready, for as long as it runs.
func (s *Server) await(ctx context.Context, p *process, name string, ask func() error) error {
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-p.exited:
			return fmt.Errorf("%s for %s ended at once:\n%s", name, s.Address(), guard.Tail(s.LogFile(), logTail))
		case <-ctx.Done():
			return fmt.Errorf("%s for %s does not get ready: %w:\n%s", name, s.Address(), err, guard.Tail(s.LogFile(), logTail))
		case <-time.After(pause):
		}
	}
}

// nameIsFree asks epmd, by its protocol, which nodes it knows; the server must not be among them.
func (s *Server) nameIsFree(ctx context.Context) error {
	conn, err := (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, "tcp", s.ports.epmd.Address())
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{0, 1, 'n'}); err != nil { // two bytes of length, and NAMES_REQ
		return err
	}
	names, err := io.ReadAll(conn)
	if err == nil && bytes.Contains(names, []byte("name "+s.name()+" ")) {
		err = fmt.Errorf("epmd still knows %s", s.name())
	}
	return err
}

// Connect makes a connection as Username.
func (s *Server) Connect() (*amqp.Connection, error) {
	return amqp.DialConfig(s.URL(), amqp.Config{
		SASL: []amqp.Authentication{&amqp.PlainAuth{Username: Username, Password: Password}}, Vhost: "/",
		Dial: amqp.DefaultDial(connectTimeout), Heartbeat: connectTimeout,
	})
}

// Stop shuts the server down; the data is kept for the next Start. If the context ends first, the server is killed.
func (s *Server) Stop(ctx context.Context) error {
	if !s.server.running() {
		return nil
	}
	_ = s.server.cmd.Process.Signal(syscall.SIGTERM) // fails only where it has ended
	select {
	case <-s.server.exited:
		return nil
	case <-ctx.Done():
		s.server.kill()
		return fmt.Errorf("stopping rabbitmq-server on %s: %w", s.Address(), ctx.Err())
	}
}

// Control runs rabbitmqctl.
func (s *Server) Control(ctx context.Context, args ...string) error {
	cmd := s.command(ctx, filepath.Join(s.bin, "rabbitmqctl"), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("running rabbitmqctl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Close ends the server and removes its data. It may be called again.
func (s *Server) Close() error {
	s.end()
	s.ports.amqp.Release()
	s.ports.node.Release()
	s.ports.epmd.Release()
	return s.guard.Close()
}

// end ends what runs. The data is not needed any more, so there is nothing to wait for.
func (s *Server) end() {
	s.server.kill()
	s.epmd.kill()
}
