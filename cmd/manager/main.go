// Command manager is the saga operator. `manager` runs it, `manager migrate` brings the database to the version it knows, and
// `manager version` says which it is.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/vextrus/saga-operator/cmd/manager/run"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run.Main(ctx, os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
