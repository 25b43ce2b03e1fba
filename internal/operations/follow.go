package operations

import (
	"context"
	"io"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/cqrs"
)

// FollowSaga reads the history of a saga as it happens. It needs the verb get, and is asked for it again and again while it goes on.
type FollowSaga struct {
	cqrs.Answers[*Following]
	// From is what is to be followed, and from where on; its limit does not count.
	From SagaHistory
}

// Needs implements what the bus asks for.
func (q FollowSaga) Needs() Permission { return q.From.Needs() }

// Validate implements cqrs.Validator.
func (q FollowSaga) Validate() error { return q.From.Validate() }

// Following is one reader's place in a history. It belongs to one goroutine.
type Following struct {
	h         *handlers
	query     SagaHistory
	who       Caller
	namespace string // the uid of the namespace
	askAgain  time.Time
	pause     time.Duration
	firstPage *History
}

func (h *handlers) follow(ctx context.Context, q FollowSaga) (*Following, error) {
	who, _ := CallerOf(ctx)
	namespace, err := h.namespaceUID(ctx, q.From.Namespace)
	if err != nil {
		return nil, err
	}
	f := &Following{h: h, query: q.From, who: who, namespace: namespace, askAgain: time.Now().Add(h.Reauthorize), pause: h.Poll}
	f.query.Limit = DefaultPage
	page, err := h.readHistory(ctx, f.query)
	if err != nil {
		return nil, err
	}
	f.query.UID = page.UID // from now on it is this one, whatever is created under its name
	f.firstPage = &page
	return f, nil
}

// Next returns the next events as soon as there are some, and no event when patience is over. It fails with io.EOF when the saga has finished and everything has been returned, and with a
// *ForbiddenError as soon as the reader has lost the right.
func (f *Following) Next(ctx context.Context, patience time.Duration) ([]Event, error) {
	// Pages of a stream are not counted: each is released before the next, but the request goes on.
	ctx = WithMemory(ctx, func(int64) error { return nil })
	until := time.Now().Add(patience)
	for {
		if now := time.Now(); !now.Before(f.askAgain) {
			if err := f.reauthorize(ctx); err != nil {
				return nil, err
			}
			f.askAgain = now.Add(f.h.Reauthorize)
		}
		page, err := f.page(ctx)
		if err != nil {
			return nil, err
		}
		if n := len(page.Events); n > 0 {
			f.query.After, f.pause = page.Events[n-1].Version, f.h.Poll
			return page.Events, nil
		}
		if page.Finished {
			return nil, io.EOF
		}
		left := time.Until(until)
		if left <= 0 {
			return nil, nil
		}
		const slowest = 10
		if err := wait(ctx, min(f.pause, left)); err != nil {
			return nil, err
		}
		f.pause = min(2*f.pause, slowest*f.h.Poll)
	}
}

// reauthorize asks whether the reader may still read. The right is for the namespace that existed at the
// beginning: in another one with its name, the saga does not exist.
func (f *Following) reauthorize(ctx context.Context) error {
	if err := f.h.Access.Allowed(ctx, f.who, f.query.Needs()); err != nil {
		return err
	}
	now, err := f.h.namespaceUID(ctx, f.query.Namespace)
	if err != nil || now == f.namespace {
		return err
	}
	if anywhere, err := f.h.hasEverywhere(ctx, f.who, f.query.Needs()); err != nil || anywhere {
		return err
	}
	return noSaga(f.query.Ref)
}

func (f *Following) page(ctx context.Context) (History, error) {
	if first := f.firstPage; first != nil {
		f.firstPage = nil
		return *first, nil
	}
	uid, err := uuid.Parse(f.query.UID)
	if err != nil {
		return History{}, err
	}
	p, err := f.h.history.page(ctx, f.query.Ref, uid, f.query.After, f.query.Limit)
	if err != nil {
		return History{}, fromDatabase("following saga "+f.query.String(), err)
	}
	return p.History, nil
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
