// Package guard makes sure that servers started for a test or a demo do not
// outlive it. A deferred Stop does not run when a test panics, times out or is
// killed; a guard does its work then too.
package guard

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// script ends the processes of a directory and removes it, once its standard
// input is closed.
//
//go:embed guard.sh
var script string

const (
	lockFile = "lock"
	runDir   = "run"
	// newborn is how old a directory must be before it is taken for abandoned:
	// between its creation and its lock passes a moment.
	newborn = time.Minute
)

// Guard watches over a temporary directory and the processes that work in it.
// However its own process ends, they are ended and the directory is removed.
type Guard struct {
	dir   string
	lock  *os.File
	pipe  io.WriteCloser
	child *exec.Cmd

	closed   sync.Once
	closeErr error
}

// New makes a temporary directory named after kind, a short word, and watches
// over it. Directories of that kind whose owners are dead, and their
// processes, are swept away first; that is for owners whose guard died with
// them.
func New(kind string) (*Guard, error) {
	prefix := "saga-" + kind + "-"
	sweep(filepath.Join(os.TempDir(), prefix+"*"))

	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		return nil, fmt.Errorf("making a temporary directory: %w", err)
	}
	g, err := watch(dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return g, nil
}

func watch(dir string) (*Guard, error) {
	// Servers that run as another user must be able to reach what is theirs.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, fmt.Errorf("opening %s to other users: %w", dir, err)
	}
	if err := os.Mkdir(filepath.Join(dir, runDir), 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of process ids: %w", err)
	}
	lock, err := tryLock(filepath.Join(dir, lockFile), os.O_CREATE)
	if err != nil {
		return nil, err
	}
	cmd := cleaner(dir)
	pipe, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting the guard of %s: %w", dir, err), lock.Close())
	}
	return &Guard{dir: dir, lock: lock, pipe: pipe, child: cmd}, nil
}

// Dir is the directory, absolute. Other users may enter but not list it.
func (g *Guard) Dir() string { return g.dir }

// PIDFile is where the id of the process called name belongs while it runs.
// The process's command line must mention the directory: a guard ends no
// process that it does not recognize.
func (g *Guard) PIDFile(name string) string {
	return filepath.Join(g.dir, runDir, name)
}

// Add puts a running process under guard, as name.
func (g *Guard) Add(name string, pid int) error {
	if err := os.WriteFile(g.PIDFile(name), []byte(strconv.Itoa(pid)+"\n"), 0o600); err != nil {
		return fmt.Errorf("recording process %d as %s: %w", pid, name, err)
	}
	return nil
}

// Remove takes a process that has ended out of the guard.
func (g *Guard) Remove(name string) {
	_ = os.Remove(g.PIDFile(name)) // The guard looks at the command line anyhow.
}

// Close ends the processes that are still there and removes the directory. It
// may be called again.
func (g *Guard) Close() error {
	g.closed.Do(func() { g.closeErr = g.close() })
	return g.closeErr
}

func (g *Guard) close() error {
	_ = g.pipe.Close()
	err := g.child.Wait()
	if _, missing := os.Lstat(g.dir); !errors.Is(missing, os.ErrNotExist) {
		err = errors.Join(err, os.RemoveAll(g.dir))
	}
	if err = errors.Join(err, g.lock.Close()); err != nil {
		return fmt.Errorf("removing %s: %w", g.dir, err)
	}
	return nil
}

// cleaner is a process of a session of its own: an interrupt typed at the
// terminal, or a kill of the owner's process group, does not reach it.
func cleaner(dir string) *exec.Cmd {
	cmd := exec.Command("/bin/sh", "-c", script, "guard", dir)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// sweep is best effort: what belongs to somebody else is left to them.
func sweep(pattern string) {
	dirs, _ := filepath.Glob(pattern)
	for _, dir := range dirs {
		if info, err := os.Lstat(dir); err != nil || !info.IsDir() || time.Since(info.ModTime()) < newborn {
			continue
		}
		lock, err := tryLock(filepath.Join(dir, lockFile), 0)
		if err != nil {
			continue
		}
		_ = cleaner(dir).Run()
		_ = lock.Close()
	}
}

// tryLock fails if another process holds the lock. The lock goes with its
// process, however that ends.
func tryLock(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW|flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening a lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
	}
	return f, nil
}

// Tail returns the last lines of a log, at most n bytes of it, for an error
// message; what cannot be read is empty.
func Tail(path string, n int) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	if len(text) > n {
		text = text[len(text)-n:]
	}
	return strings.TrimSpace(string(text))
}
