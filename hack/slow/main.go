//go:build linux

// Command slow runs a command as if the machine were slow: the command and its descendants have one CPU for 200 ms of each second, and are stopped for the rest of it.
//
//	go test -exec "$PWD/bin/slow" ./internal/engine
//
// Only descendants are signaled. They include servers that have a session of their own or whose parent has ended. The exit code is the command's. An interrupt or a
// termination signal is passed on to the command, which then ends at full speed.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	running = 200 * time.Millisecond
	stopped = 800 * time.Millisecond
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: slow COMMAND [ARGUMENT...]")
		os.Exit(2)
	}
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "slow:", err)
		code = 1
	}
	os.Exit(code)
}

// run starts a command, slows it down until it ends, and returns its exit code.
func run(command []string) (int, error) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	pid, err := start(command)
	if err != nil {
		return 0, err
	}
	ended := make(chan syscall.WaitStatus, 1)
	go reap(pid, ended)

	var halted []int
	phase := time.NewTimer(running)
	defer phase.Stop()
	for {
		select {
		case status := <-ended:
			resume(halted) // other descendants may outlive the command
			return exitCode(status), nil
		case s := <-signals:
			resume(halted)
			halted = nil
			phase.Stop()
			_ = syscall.Kill(pid, s.(syscall.Signal)) // the command may have ended just now
		case <-phase.C:
			if len(halted) > 0 {
				resume(halted)
				halted = nil
				phase.Reset(running)
				continue
			}
			if halted, err = halt(os.Getpid()); err != nil {
				return 0, err
			}
			phase.Reset(stopped)
		}
	}
}

// start starts the command on one CPU. It dies with this process, so that it cannot stay stopped. Orphans among its descendants become children of this process.
func start(command []string) (pid int, err error) {
	path, err := exec.LookPath(command[0])
	if err != nil {
		return 0, fmt.Errorf("looking for %s: %w", command[0], err)
	}
	runtime.LockOSThread() // the affinity is the thread's, and so is the parent that Pdeathsig watches
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("adopting orphans: %w", err)
	}
	if err := useOneCPU(); err != nil {
		return 0, err
	}
	process, err := os.StartProcess(path, command, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return 0, fmt.Errorf("starting %s: %w", path, err)
	}
	return process.Pid, nil
}

// useOneCPU restricts the calling thread to the first CPU that it may use.
func useOneCPU() error {
	var allowed, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return fmt.Errorf("reading the CPU affinity: %w", err)
	}
	first := 0
	for !allowed.IsSet(first) {
		first++
	}
	one.Set(first)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("setting the CPU affinity: %w", err)
	}
	return nil
}

// reap waits for all children, adopted ones too, until the command has ended.
func reap(command int, ended chan<- syscall.WaitStatus) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if pid == command || err == syscall.ECHILD {
			ended <- status
			return
		}
	}
}

func exitCode(status syscall.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}
