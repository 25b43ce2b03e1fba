//go:build linux

package main

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// asCommand has the test binary be the command itself.
const asCommand = "SLOW_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	os.Exit(m.Run())
}

// slow is the command, which runs a script.
func slow(t *testing.T, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "sh", "-c", script)
	cmd.Env = append(os.Environ(), asCommand+"=1")
	cmd.Stderr = t.Output()
	return cmd
}

// eventually waits until the descendants of a process are as they should be.
func eventually(t *testing.T, of int, what string, is func([]process) bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Minute); time.Now().Before(deadline); <-tick.C {
		all, err := descendants(of)
		if err != nil {
			t.Fatal(err)
		}
		if is(all) {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

func countStopped(all []process) (n int) {
	for _, p := range all {
		if p.isStopped() {
			n++
		}
	}
	return n
}

func countChildren(all []process, of int) (n int) {
	for _, p := range all {
		if p.parent == of {
			n++
		}
	}
	return n
}

// startCommand starts a command that is killed at the end of the test, with all that is below it then.
func startCommand(t *testing.T, cmd *exec.Cmd) (pid int) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState != nil {
			return
		}
		all, err := descendants(cmd.Process.Pid)
		if err != nil {
			t.Error(err)
		}
		_ = cmd.Process.Kill()
		for _, p := range all {
			_ = syscall.Kill(p.pid, syscall.SIGKILL) // one may have ended with its parent
		}
		_ = cmd.Wait() // it was killed
	})
	return cmd.Process.Pid
}

// TestSlowStopsAndResumesDescendants includes a process in a session of its own whose parent has ended.
func TestSlowStopsAndResumesDescendants(t *testing.T) {
	t.Parallel()
	bystander := startCommand(t, exec.Command("sleep", "1000"))
	of := startCommand(t, slow(t, `(setsid sleep 1000 &); while :; do sleep 1000; done`))
	eventually(t, of, "the orphan is adopted", func(all []process) bool { return len(all) == 3 && countChildren(all, of) == 2 })
	for range 2 {
		eventually(t, of, "all are stopped", func(all []process) bool { return countStopped(all) == 3 })
		if p, ok := readProcess(strconv.Itoa(bystander)); !ok || p.isStopped() {
			t.Errorf("the bystander is %+v", p)
		}
		eventually(t, of, "all run", func(all []process) bool { return len(all) == 3 && countStopped(all) == 0 })
	}
}

// TestHaltLeavesStoppedProcess starts two processes, one of which is stopped before.
func TestHaltLeavesStoppedProcess(t *testing.T) {
	t.Parallel()
	of := startCommand(t, exec.Command("sh", "-c", "sleep 1000 & kill -STOP $!; sleep 1000 & wait"))
	eventually(t, of, "one of two is stopped", func(all []process) bool { return len(all) == 2 && countStopped(all) == 1 })
	halted, err := halt(of)
	if err != nil || len(halted) != 1 {
		t.Fatalf("%v were stopped, want one; %v", halted, err)
	}
	eventually(t, of, "the other is stopped", func(all []process) bool { return countStopped(all) == 2 })
	resume(halted)
	eventually(t, of, "the other runs", func(all []process) bool { return countStopped(all) == 1 })
}

// TestSlowPassesOnSignalAndExitCode signals the command while it is stopped.
func TestSlowPassesOnSignalAndExitCode(t *testing.T) {
	t.Parallel()
	cmd := slow(t, `trap 'exit 7' TERM; while :; do sleep 1; done`)
	of := startCommand(t, cmd)
	eventually(t, of, "it sleeps and is stopped", func(all []process) bool { return len(all) == 2 && countStopped(all) == 2 })
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("it ended with %v, want exit code 7", err)
	}
}
