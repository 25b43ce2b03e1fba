// Command throwaway-postgres runs a command with a throw-away PostgreSQL:
//
//	throwaway-postgres [-durable] -- go test ./...
//
// The command finds the server's URL in DATABASE_URL. The exit code is the
// command's. Without a command, the server runs until it is interrupted.
// Package throwaway says which PostgreSQL is used.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

func main() {
	durable := flag.Bool("durable", false, "wait for the disk, as production does")
	flag.Parse()
	code, err := run(*durable, flag.Args())
	if err != nil {
		fmt.Fprintf(os.Stderr, "throwaway-postgres: %v\n", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(durable bool, command []string) (code int, err error) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	progress := func(line string) { fmt.Fprintf(os.Stderr, "throwaway-postgres: %s\n", line) }
	server, err := start(ctx, cancel, signals, throwaway.Options{Durable: durable, Progress: progress})
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	if len(command) == 0 {
		fmt.Println("DATABASE_URL=" + server.URL())
		<-signals
		return 0, nil
	}
	return runCommand(command, server.URL(), signals)
}

// start starts the server and gives up at a signal.
func start(ctx context.Context, cancel func(), signals <-chan os.Signal, o throwaway.Options) (*throwaway.Server, error) {
	type result struct {
		server *throwaway.Server
		err    error
	}
	started := make(chan result, 1)
	go func() {
		server, err := throwaway.Start(ctx, o)
		started <- result{server, err}
	}()
	select {
	case r := <-started:
		return r.server, r.err
	case s := <-signals:
		cancel()
		r := <-started
		if r.err == nil {
			r.err = r.server.Close()
		}
		return nil, errors.Join(fmt.Errorf("stopped by signal: %v", s), r.err)
	}
}

// runCommand runs the command in a process group of its own, which gets the
// signals that arrive here; a second one kills it.
func runCommand(command []string, url string, signals <-chan os.Signal) (int, error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+url)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 127, fmt.Errorf("starting the command: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for received := 0; ; received++ {
		select {
		case s := <-signals:
			if received > 0 {
				s = syscall.SIGKILL
			}
			_ = syscall.Kill(-cmd.Process.Pid, s.(syscall.Signal)) // It may have ended just now.
		case err := <-ended:
			var exit *exec.ExitError
			if !errors.As(err, &exit) {
				return 0, err
			}
			if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
				return 128 + int(status.Signal()), nil
			}
			return exit.ExitCode(), nil
		}
	}
}
