package rabbitmq_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/outbox"
)

func TestAListenerGetsWhatWasPublishedAndAcknowledgesIt(t *testing.T) {
	t.Parallel()
	r := rig(t)
	p := r.publisher(t)
	mustPublish(t, p, message("a", "1"))
	got, stop := listen(t, p, r.name, func(outbox.Incoming) error { return nil })
	in := receive(t, got)
	stop()
	e, err := outbox.Decode(in)
	if err != nil {
		t.Fatal(err)
	}
	if e.Type() != "shop.OrderPlaced" || string(in.Body) != "1" {
		t.Errorf("%v with %s came", e, in.Body)
	}
	mustPublish(t, p, message("a", "2"))
	if d := r.get(t); string(d.Body) != "2" {
		t.Errorf("%s was not acknowledged", d.Body)
	}
}

func TestAMessageThatIsNotHandledComesAgain(t *testing.T) {
	t.Parallel()
	r := rig(t)
	p := r.publisher(t)
	mustPublish(t, p, message("a", "1"))
	failures := 2
	got, stop := listen(t, p, r.name, func(outbox.Incoming) error {
		if failures > 0 {
			failures--
			return errors.New("not now")
		}
		return nil
	})
	defer stop()
	for range 3 {
		if in := receive(t, got); string(in.Body) != "1" {
			t.Fatalf("%s came", in.Body)
		}
	}
}

func TestAMessageThatWasBeingHandledWhenTheListenerEndedComesAgain(t *testing.T) {
	t.Parallel()
	r := rig(t)
	p := r.publisher(t)
	mustPublish(t, p, message("a", "1"))
	got, stop := listen(t, p, r.name, func(outbox.Incoming) error { return errors.New("no") })
	receive(t, got)
	stop()
	got, stop = listen(t, p, r.name, func(outbox.Incoming) error { return nil })
	defer stop()
	if in := receive(t, got); string(in.Body) != "1" {
		t.Errorf("%s came", in.Body)
	}
}

func TestListeningToAQueueThatDoesNotExistFails(t *testing.T) {
	t.Parallel()
	r := rig(t)
	err := r.publisher(t).Listen(t.Context(), r.name+"-nowhere", "group", func(context.Context, outbox.Incoming) error { return nil })
	wantError(t, err, outbox.Unavailable, outbox.ReasonNotFound)
}

func TestListenEndsWhenTheConnectionDoes(t *testing.T) {
	t.Parallel()
	r := rig(t)
	conns := make(chan net.Conn, 2)
	dial := r.config.Dial
	r.config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		conns <- conn
		return conn, err
	}
	ended := make(chan error, 1)
	p := r.publisher(t)
	got := make(chan outbox.Incoming, 1)
	go func() {
		ended <- p.Listen(t.Context(), r.name, "group", func(_ context.Context, in outbox.Incoming) error { got <- in; return nil })
	}()
	listening := <-conns
	mustPublish(t, p, message("a", "1"))
	receive(t, got)
	listening.Close()
	select {
	case err := <-ended:
		wantError(t, err, outbox.Unavailable, outbox.ReasonConnectionFailed)
	case <-time.After(patience):
		t.Fatal("it goes on listening to nobody")
	}
}
