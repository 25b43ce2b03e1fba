package main

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
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

// TestTheDemoCanBeInterrupted ends it while it starts.
func TestTheDemoCanBeInterrupted(t *testing.T) {
	t.Chdir("../../..")
	t.Setenv("DATABASE_URL", "")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if err := run(ctx, true, 1, seed); err != nil && ctx.Err() == nil || errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}
