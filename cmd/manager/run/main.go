// Package run wires the operator together: settings, logs, database, engine, controllers, health. Start reading at Main.
package run

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/vextrus/saga-operator/internal/postgres"
)

// Version is the version of the binary; the linker sets it.
var Version = "dev"

// Exit codes.
const (
	exitOK = iota
	exitFailed
	exitUsage
)

// Main runs the command that the arguments name and returns the exit code of the process. It ends when ctx does.
func Main(ctx context.Context, args []string, env func(string) (string, bool), stdout, stderr io.Writer) int {
	return mainWith(ctx, args, env, stdout, stderr, time.Now)
}

// mainWith is Main on a machine whose clock is wall.
func mainWith(ctx context.Context, args []string, env func(string) (string, bool), stdout, stderr io.Writer, wall func() time.Time) int {
	command, args := split(args)
	var answer func(Config) error
	switch command {
	case "manager", "migrate":
	case "projections", "outbox", "events", "abandon":
		var wrong error
		answer, args, wrong = asking(ctx, command, args, stdout)
		if wrong != nil {
			if !slices.Contains(args, "--help") {
				fmt.Fprintf(stderr, "manager: %v\n", wrong)
				return exitUsage
			}
			answer = func(Config) error { return wrong } // whatever --help turns out to be, nothing is done
		}
	case "grants":
		if len(args) != 1 {
			fmt.Fprintln(stderr, "usage: manager grants ROLE")
			return exitUsage
		}
		fmt.Fprint(stdout, postgres.Grants(args[0]))
		return exitOK
	case "version":
		fmt.Fprintf(stdout, "saga-operator %s (%s)\n", Version, revision())
		return exitOK
	default:
		fmt.Fprintf(stderr, "manager: there is no command %q; the commands are manager (the default), migrate, grants, projections, outbox, events, abandon and version\n", command)
		return exitUsage
	}
	c, err := Parse(args, env, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "manager: %v\n", err)
		return exitUsage
	}
	if answer != nil {
		if err := answer(c); err != nil {
			fmt.Fprintf(stderr, "manager: %v\n", err)
			return exitFailed
		}
		return exitOK
	}
	log := newLogger(c, stderr)
	if command == "migrate" {
		err = migrateOnce(ctx, c, log)
	} else {
		err = operator(ctx, c, log, wall)
	}
	if err != nil {
		log.Error("ending", "error", err)
		return exitFailed
	}
	return exitOK
}

// asking prepares a command whose person waits for the answer, not for a log. It returns the flags that are left for Parse, and what is wrong with the rest.
func asking(ctx context.Context, command string, args []string, out io.Writer) (answer func(Config) error, flags []string, wrong error) {
	if command == "outbox" {
		asked, flags, wrong := parseOutbox(args)
		return func(c Config) error { return ofOutbox(ctx, c, asked, out) }, flags, wrong
	}
	if command == "events" {
		asked, flags := words(args)
		of, wrong := parseEvents(asked)
		return func(c Config) error { return ofEvents(ctx, c, of, out) }, flags, wrong
	}
	if command == "abandon" {
		asked, flags, wrong := parseAbandon(args)
		return func(c Config) error { return abandon(ctx, c, asked, out) }, flags, wrong
	}
	asked, flags, wrong := parseProjections(args)
	return func(c Config) error { return projections(ctx, c, asked, out) }, flags, wrong
}

// split takes the command off the arguments.
func split(args []string) (string, []string) {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return "manager", args
	}
	return args[0], args[1:]
}

func migrateOnce(ctx context.Context, c Config, log *slog.Logger) error {
	if err := postgres.Migrate(ctx, string(c.DatabaseURL)); err != nil {
		return err
	}
	log.Info("the database is at the version that this binary knows")
	return nil
}

// revision is the commit that the binary was built from, as far as Go knows.
func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown revision"
	}
	rev, dirty := "unknown revision", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			rev = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = ", modified"
		}
	}
	return rev + dirty + ", " + info.GoVersion
}
