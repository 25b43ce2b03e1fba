package guard_test

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/guard"
)

// TestMain is also the owner that gets killed: it guards a process, prints the
// directory and the process's id, and waits.
func TestMain(m *testing.M) {
	if os.Getenv("GUARD_TEST_OWNER") == "" {
		os.Exit(m.Run())
	}
	g, err := guard.New("guardtest")
	if err != nil {
		panic(err)
	}
	victim := sleeper(g.Dir())
	if err := victim.Start(); err != nil {
		panic(err)
	}
	if err := g.Add("sleeper", victim.Process.Pid); err != nil {
		panic(err)
	}
	os.Stdout.WriteString(g.Dir() + " " + strconv.Itoa(victim.Process.Pid) + "\n")
	select {}
}

// sleeper mentions the directory in its command line, as a server does.
func sleeper(dir string) *exec.Cmd {
	return exec.Command("/bin/sh", "-c", "while :; do sleep 1; done", filepath.Join(dir, "data"))
}

func TestAKilledOwnerLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	owner := exec.Command(os.Args[0])
	owner.Env = append(os.Environ(), "GUARD_TEST_OWNER=1", "TMPDIR="+t.TempDir())
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	dir, pid, _ := strings.Cut(strings.TrimSpace(line), " ")
	victim, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}

	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()

	eventually(t, "the guarded process is gone", func() bool { return errors.Is(syscall.Kill(victim, 0), syscall.ESRCH) || zombie(victim) })
	eventually(t, "the directory is gone", func() bool { return !exists(dir) })
}

func TestCloseEndsWhatIsLeftAndRemovesTheDirectory(t *testing.T) {
	t.Parallel()
	g, err := guard.New("guardtest")
	if err != nil {
		t.Fatal(err)
	}
	victim := sleeper(g.Dir())
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Add("sleeper", victim.Process.Pid); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- victim.Wait() }()

	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if exists(g.Dir()) {
		t.Errorf("%s is still there", g.Dir())
	}
	if err := <-ended; err == nil {
		t.Error("the process was not ended by a signal")
	}
}

func TestAProcessThatOnlyHasTheNumberIsSpared(t *testing.T) {
	t.Parallel()
	g, err := guard.New("guardtest")
	if err != nil {
		t.Fatal(err)
	}
	stranger := exec.Command("cat") // it stays until it is killed, or its input ends
	input, err := stranger.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = input.Close() }()
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stranger.Process.Kill(); err != nil {
			t.Errorf("the stranger did not survive: %v", err)
		}
		_ = stranger.Wait()
	}()
	if err := g.Add("stranger", stranger.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if zombie(stranger.Process.Pid) {
		t.Error("a process that does not belong to the directory was ended")
	}
}

func TestTheNextStartSweepsAnAbandonedDirectoryButNotOneInUse(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	used, err := guard.New("guardtest")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = used.Close() }()
	abandoned := filepath.Join(os.TempDir(), "saga-guardtest-abandoned")
	if err := os.MkdirAll(filepath.Join(abandoned, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(abandoned, "lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	for _, dir := range []string{abandoned, used.Dir()} {
		if err := os.Chtimes(dir, old, old); err != nil {
			t.Fatal(err)
		}
	}

	next, err := guard.New("guardtest")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = next.Close() }()
	if exists(abandoned) {
		t.Error("the abandoned directory is still there")
	}
	if !exists(used.Dir()) {
		t.Error("a directory in use was removed")
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); !holds(); time.Sleep(20 * time.Millisecond) { //nolint:forbidigo // the pause between two looks
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// zombie says whether a process has ended without having been waited for.
func zombie(pid int) bool {
	out, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.HasPrefix(strings.TrimSpace(string(out)), "Z")
}
