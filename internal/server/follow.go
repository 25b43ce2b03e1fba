package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/operations"
)

// follow answers with a stream, once there is a first answer: until then an error is an ordinary one.
func (s *Server) follow(ctx context.Context, q operations.SagaHistory) (*historyOutput, error) {
	x := exchangeOf(ctx)
	free, p := s.admitFollower(x.user)
	if p != nil {
		return nil, p
	}
	reader, err := cqrs.Ask(ctx, s.commands.Queries, operations.FollowSaga{From: q})
	var events []operations.Event
	if err == nil {
		events, err = reader.Next(ctx, 0)
	}
	if errors.Is(err, io.EOF) {
		free()
		return &historyOutput{Body: func(c huma.Context) { c.SetStatus(http.StatusNoContent) }}, nil
	}
	if err != nil {
		free()
		return nil, err
	}
	return &historyOutput{Body: func(c huma.Context) {
		defer free()
		x.place()
		x.memory.Close() // a stream does not count for the memory limit
		s.metrics.followers.Inc()
		defer s.metrics.followers.Dec()
		r, w := humago.Unwrap(c)
		s.stream(r.Context(), &stream{w: w, control: http.NewResponseController(w), timeout: s.limits.StreamWriteTimeout}, reader, events)
	}}, nil
}

// admitFollower takes a place for a stream of a user. The limit of each user alone would leave all
// streams to a tenant with many ServiceAccounts.
func (s *Server) admitFollower(user string) (free func(), _ *Problem) {
	freeUser, ok := s.userFollowed.take(user)
	if !ok {
		s.metrics.limited.WithLabelValues("user followers").Inc()
		return nil, newProblem(http.StatusTooManyRequests, "TooManyFollowers", "user %q follows %d sagas already", user, s.limits.UserFollowers).later(s.limits.Heartbeat)
	}
	freeTenant, ok := s.followed.take(tenantOf(user))
	if !ok {
		freeUser()
		s.metrics.limited.WithLabelValues("followers").Inc()
		return nil, newProblem(http.StatusServiceUnavailable, "TooManyFollowers", "the operator has no stream left for this user's tenant; retry later").later(s.limits.Heartbeat)
	}
	return func() { freeTenant(); freeUser() }, nil
}

// stream writes events until the saga has finished, the client is gone, or the operator stops.
func (s *Server) stream(ctx context.Context, to *stream, from *operations.Following, events []operations.Event) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-s.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	to.begin()
	var err error
	for err == nil {
		if err = to.send(events); err == nil {
			events, err = from.Next(ctx, s.limits.Heartbeat)
		}
	}
	if errors.Is(err, io.EOF) || ctx.Err() != nil || to.broken {
		return
	}
	to.problem(s.failure(ctx, err))
}

// stream is a client that follows.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
	broken  bool
}

// begin writes the header. A client that loses the connection comes back after a second.
func (t *stream) begin() {
	t.w.Header().Set("Content-Type", eventStream)
	t.w.Header().Set("X-Accel-Buffering", "no") // for proxies that would collect
	t.w.WriteHeader(http.StatusOK)
	_ = t.write([]byte("retry: 1000\n\n"))
}

// send writes events, or, where there are none, something that shows that the connection is alive.
func (t *stream) send(events []operations.Event) error {
	if len(events) == 0 {
		return t.write([]byte(": nothing new\n\n"))
	}
	var b bytes.Buffer
	for _, e := range events {
		data, err := json.Marshal(event(e))
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "id: %d\nevent: %s\ndata: %s\n\n", e.Version, e.Type, data)
	}
	return t.write(b.Bytes())
}

// problem tells why the stream ends although the saga goes on.
func (t *stream) problem(p *Problem) {
	if data, err := json.Marshal(p); err == nil {
		_ = t.write(fmt.Appendf(nil, "event: problem\ndata: %s\n\n", data))
	}
}

// write gives each write its own time, and a client that does not read is let go.
func (t *stream) write(b []byte) error {
	err := t.control.SetWriteDeadline(time.Now().Add(t.timeout))
	if errors.Is(err, http.ErrNotSupported) {
		err = nil
	}
	if err == nil {
		if _, err = t.w.Write(b); err == nil {
			err = t.control.Flush()
		}
	}
	t.broken = err != nil
	return err
}
