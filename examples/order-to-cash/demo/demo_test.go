package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/jackc/pgx/v5"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// TestMain is also the demo that is interrupted.
func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	if os.Getenv("DEMO_TEST_STAY") != "" {
		os.Args = []string{"demo", "-stay", "-orders", "1"}
		main()
	}
	os.Exit(m.Run())
}

// TestTheDemoEndsAsItShould runs the demo as make demo does, from the root of the repository.
func TestTheDemoEndsAsItShould(t *testing.T) {
	t.Chdir("../../..")
	t.Setenv("DATABASE_URL", "") // the demo brings a server of its own
	if err := run(t.Context(), false, 12, seed); err != nil {
		t.Fatal(err)
	}
}

func TestAnInterruptedDemoLeavesNothingBehind(t *testing.T) {
	t.Run("while it runs", func(t *testing.T) {
		d := startDemo(t, "")
		d.await("Ctrl-C stops everything.")
		if running := d.processes(); len(running) < 6 {
			t.Errorf("these processes of the demo run, and should be those of PostgreSQL, the cluster, the operator and the services: %q", running)
		}
		d.interrupt()
	})
	t.Run("while it starts, on a server that the user names", func(t *testing.T) {
		named := throwaway.NewServer(t, throwaway.Options{Own: true})
		before := databases(t, named)
		d := startDemo(t, named.URL())
		d.await("starting etcd")
		d.interrupt()
		if after := databases(t, named); after != before {
			t.Errorf("the server had %d databases, and has %d", before, after)
		}
	})
}

func TestTheDemoSaysThatNothingIsLeftOnlyWhenThatIsSo(t *testing.T) {
	t.Parallel()
	left := fmt.Errorf("%w: %w", errLeft, errors.New("etcd did not stop"))
	for _, c := range []struct {
		err               error
		interrupted, stay bool
		code              int
		says              string
	}{
		{nil, false, false, 0, ""},
		{errors.New("it does not add up"), false, false, 1, "does not add up"},
		{errors.New("canceled"), true, false, 130, "nothing is left"},
		{nil, true, true, 0, "nothing is left"},
		{left, true, false, 1, "etcd did not stop"},
		{errors.Join(errors.New("canceled"), left), true, true, 1, "etcd did not stop"},
		{left, false, false, 1, "etcd did not stop"},
	} {
		code, says := outcome(c.err, c.interrupted, c.stay)
		if code != c.code || !strings.Contains(says, c.says) || c.says == "etcd did not stop" && strings.Contains(says, "nothing is left") {
			t.Errorf("%v, interrupted %t, stay %t: %d %q, want %d and %q", c.err, c.interrupted, c.stay, code, says, c.code, c.says)
		}
	}
}

// interruptible is a demo that runs as a process of its own.
type interruptible struct {
	*testing.T
	cmd    *exec.Cmd
	output *bufio.Reader
	// dir is where all its files are; the environment or the command line of each of its processes has it.
	dir string
}

func startDemo(t *testing.T, databaseURL string) *interruptible {
	t.Helper()
	dir, err := os.MkdirTemp("", "demo-test-") //nolint:usetesting // PostgreSQL's user may not enter the directory of a test
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	d := &interruptible{T: t, cmd: exec.Command(os.Args[0]), dir: dir}
	d.cmd.Dir = "../../.."
	d.cmd.Env = append(os.Environ(), "DEMO_TEST_STAY=1", "TMPDIR="+dir, "DATABASE_URL="+databaseURL)
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.cmd.Stderr = d.cmd.Stdout
	d.output = bufio.NewReader(out)
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // of a test that has failed: the guards of the demo end the rest
		if d.cmd.ProcessState == nil {
			_ = d.cmd.Process.Kill()
			_ = d.cmd.Wait()
		}
	})
	return d
}

// await reads what the demo says until it says something.
func (d *interruptible) await(what string) {
	d.Helper()
	var said bytes.Buffer
	for !strings.Contains(said.String(), what) { // it may be in the middle of a line
		c, err := d.output.ReadByte()
		if err != nil {
			d.Fatalf("the demo ended (%v) and did not say %q, but\n%s", err, what, said.String())
		}
		said.WriteByte(c)
	}
}

// interrupt presses Ctrl-C, and looks at what is left.
func (d *interruptible) interrupt() {
	d.Helper()
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil {
		d.Fatal(err)
	}
	rest, err := io.ReadAll(d.output)
	if err != nil {
		d.Error(err)
	}
	if err := d.cmd.Wait(); err != nil || !strings.HasSuffix(string(rest), "nothing is left behind\n") {
		d.Errorf("the demo ended: %v, and said\n%s", err, rest)
	}
	if left := d.processes(); len(left) > 0 {
		d.Errorf("these processes are left: %q", left)
	}
	if files, err := os.ReadDir(d.dir); err != nil || len(files) > 0 {
		d.Errorf("these files are left: %v, %v", files, err)
	}
}

// processes are the command lines of the demo's processes, and of theirs, but not its own.
func (d *interruptible) processes() (found []string) {
	d.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil || len(dirs) == 0 {
		d.Skipf("processes cannot be listed here: %v", err)
	}
	for _, dir := range dirs {
		command, _ := os.ReadFile(filepath.Join(dir, "cmdline")) // of one that has ended meanwhile there is none
		environment, _ := os.ReadFile(filepath.Join(dir, "environ"))
		ours := bytes.Contains(command, []byte(d.dir)) || bytes.Contains(environment, []byte(d.dir))
		if ours && filepath.Base(dir) != fmt.Sprint(d.cmd.Process.Pid) {
			found = append(found, string(bytes.ReplaceAll(command, []byte{0}, []byte{' '})))
		}
	}
	return found
}

func databases(t *testing.T, s *throwaway.Server) (n int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.SuperuserURL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_database").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
