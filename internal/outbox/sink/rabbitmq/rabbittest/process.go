package rabbittest

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// process is a program under guard. A nil one has not been started.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}
}

// launch starts a program whose output goes to the log.
func (s *Server) launch(name string, cmd *exec.Cmd) (*process, error) {
	log, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the server's log: %w", err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", cmd.Path, err)
	}
	p := &process{cmd: cmd, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		s.guard.Remove(name)
		close(p.exited)
	}()
	if err := s.guard.Add(name, cmd.Process.Pid); err != nil {
		p.kill()
		return nil, err
	}
	return p, nil
}

func (p *process) running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

func (p *process) kill() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Kill() // fails only where it has ended
	<-p.exited
}

// write makes the server's directory and its configuration.
func (s *Server) write() error {
	home := s.home()
	if err := errors.Join(os.RemoveAll(home), os.Mkdir(home, 0o700)); err != nil {
		return fmt.Errorf("making the server's directory: %w", err)
	}
	definitions, err := s.definitions()
	if err != nil {
		return err
	}
	config := strings.Join([]string{
		"listeners.tcp.1 = " + s.Address(),
		"load_definitions = " + filepath.Join(home, "definitions.json"),
		"max_message_size = " + strconv.Itoa(MaxMessageBytes),
		// A full disk of the machine is not what is tested.
		"disk_free_limit.absolute = 1MB",
		// Nor is how fast it is: clients may take their time to log in.
		"handshake_timeout = 600000",
		"log.file = false", "log.console = true", "log.console.level = info",
	}, "\n")
	for name, content := range map[string]string{
		"rabbitmq.conf": config, "definitions.json": definitions, "enabled_plugins": "[].\n", ".erlang.cookie": rand.Text(),
	} {
		if err := os.WriteFile(filepath.Join(home, name), []byte(content), 0o400); err != nil {
			return fmt.Errorf("writing the server's configuration: %w", err)
		}
	}
	if s.credential == nil {
		return nil
	}
	return filepath.WalkDir(home, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(s.credential.Uid), int(s.credential.Gid))
	})
}

// definitions are the users and virtual hosts that a server begins with.
func (s *Server) definitions() (string, error) {
	type object = map[string]any
	may := func(user, vhost, write string) object {
		return object{"user": user, "vhost": vhost, "configure": write, "write": write, "read": ".*"}
	}
	text, err := json.Marshal(object{
		"users": []object{
			{"name": Username, "password": Password, "tags": []string{"administrator"}},
			{"name": Reader, "password": Password, "tags": []string{}},
		},
		"vhosts":      []object{{"name": "/"}, {"name": OtherVHost}},
		"permissions": []object{may(Username, "/", ".*"), may(Username, OtherVHost, ".*"), may(Reader, "/", "")},
	})
	if err != nil {
		return "", fmt.Errorf("writing the server's users: %w", err)
	}
	return string(text), nil
}

// serverUser is who the server runs as when we are root: it needs no rights, so it has none.
func serverUser() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"rabbitmq", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("reading the ids of user %s: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("RabbitMQ is not run as root here, and there is neither a user rabbitmq nor a user nobody to run it as")
}
