package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/vextrus/saga-operator/internal/panics"
)

// stopPatience is how long requests under way may take when an endpoint is stopped.
const stopPatience = 10 * time.Second

// endpoint serves HTTPS with a certificate that is read again when its files change, or plain HTTP.
type endpoint struct {
	name  string // for logs and errors, such as "the API"
	flags string // the first word of its flags, such as "api"

	server            *http.Server
	plain             bool
	certFile, keyFile string
	log               *slog.Logger
	stopping          func() // called before the server waits for its requests to end; may be nil
}

// serve serves on a listener, which it closes, until ctx is done.
func (e *endpoint) serve(ctx context.Context, l net.Listener) error {
	keepUp := untilDone
	if !e.plain {
		config, watch, err := e.certificates()
		if err != nil {
			_ = l.Close()
			return err
		}
		e.server.TLSConfig, keepUp = config, watch
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	watched := make(chan error, 1)
	wg.Go(func() {
		defer cancel() // an endpoint stops without its certificate
		watched <- panics.Catch(e.log, "watching the certificate of "+e.name, func() error { return keepUp(ctx) })
	})
	wg.Go(func() {
		defer panics.Recover(e.log, "stopping "+e.name)
		<-ctx.Done()
		e.stop(context.WithoutCancel(ctx))
	})
	e.log.Info("serving "+e.name, "address", l.Addr().String(), "tls", !e.plain)
	var err error
	if e.plain {
		err = e.server.Serve(l)
	} else {
		err = e.server.ServeTLS(l, "", "")
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving %s: %w", e.name, err)
	}
	return <-watched
}

// stop waits for the requests under way, for at most stopPatience.
func (e *endpoint) stop(ctx context.Context) {
	if e.stopping != nil {
		e.stopping()
	}
	ctx, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	if err := e.server.Shutdown(ctx); err != nil {
		e.log.Warn("requests to "+e.name+" were cut off", "error", err)
		_ = e.server.Close()
	}
}
