// Package memory is a destination within the process: for tests that need a fault, and to measure the relay by itself.
package memory

import (
	"context"
	"slices"
	"sync"

	"github.com/vextrus/saga-operator/internal/outbox"
)

// Publisher keeps what is published. Its fields are set before it is used.
type Publisher struct {
	// Fault, where given, is asked before each message is taken. What it returns is what Publish says of the message.
	Fault func(ctx context.Context, m *outbox.Message) error
	// Discard has messages encoded as for any other destination, and not kept.
	Discard bool
	// Mode is how messages are encoded; Binary by default.
	Mode outbox.Mode
	// Sizes are what Limits returns; 256 messages in one call at a time by default.
	Sizes outbox.Limits

	mu     sync.Mutex
	taken  []outbox.Message
	count  int
	more   chan struct{}
	closed bool
}

// Publish implements outbox.Publisher.
func (p *Publisher) Publish(ctx context.Context, all []outbox.Message) []error {
	errs := make([]error, len(all))
	took := make([]outbox.Message, 0, len(all))
	for i := range all {
		if p.Fault != nil {
			errs[i] = p.Fault(ctx, &all[i])
		}
		if errs[i] == nil {
			_, errs[i] = all[i].Encode(p.Mode, "ce-")
		}
		if errs[i] == nil {
			took = append(took, all[i])
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		for i := range errs {
			errs[i] = outbox.Errorf(outbox.Unavailable, outbox.ReasonConnectionFailed, "publishing: the publisher is closed")
		}
		return errs
	}
	p.count += len(took)
	if !p.Discard {
		p.taken = append(p.taken, took...)
	}
	if p.more != nil {
		close(p.more)
		p.more = nil
	}
	return errs
}

// Check implements outbox.Publisher.
func (p *Publisher) Check(context.Context) error {
	if p.Closed() {
		return outbox.Errorf(outbox.Unavailable, outbox.ReasonConnectionFailed, "looking at the destination: the publisher is closed")
	}
	return nil
}

// Limits implements outbox.Publisher.
func (p *Publisher) Limits() outbox.Limits {
	if p.Sizes.Batch > 0 {
		return p.Sizes
	}
	const batch = 256
	return outbox.Limits{Batch: batch, Parallel: 1}
}

// Close implements outbox.Publisher.
func (p *Publisher) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return nil
}

// Closed reports whether the publisher was closed.
func (p *Publisher) Closed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// Taken returns what was published so far, in order.
func (p *Publisher) Taken() []outbox.Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.taken)
}

// Await returns when so many messages were published, or ctx is done.
func (p *Publisher) Await(ctx context.Context, n int) error {
	for {
		p.mu.Lock()
		if p.count >= n {
			p.mu.Unlock()
			return nil
		}
		if p.more == nil {
			p.more = make(chan struct{})
		}
		more := p.more
		p.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
