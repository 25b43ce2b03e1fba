package run

import (
	"context"
	"log/slog"
	"time"

	"github.com/vextrus/saga-operator/internal/engine"
)

// answersEvery is how often answers are looked for that nobody has told of.
const answersEvery = 2 * time.Second

// answers has sagas looked at that have been answered. The replica that leads does so; one that begins to lead looks at all unfinished sagas anyway.
type answers struct {
	engine *engine.Engine
	tell   func(engine.Key)
	news   <-chan struct{} // something has been committed, here or elsewhere
	log    *slog.Logger
}

// Start implements manager.Runnable.
func (a *answers) Start(ctx context.Context) error {
	const atLeast = 20 * time.Millisecond // however much is committed, the database is asked so often at most
	ticker := time.NewTicker(answersEvery)
	defer ticker.Stop()
	for {
		select {
		case <-a.news:
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
		if err := a.engine.Answered(ctx, a.tell); err != nil && ctx.Err() == nil {
			a.log.Warn("answers could not be looked for; it is tried again", "error", err)
		}
		select {
		case <-time.After(atLeast):
		case <-ctx.Done():
			return nil
		}
	}
}

// nudge says that there is news, unless that has been said already.
func nudge(news chan<- struct{}) {
	select {
	case news <- struct{}{}:
	default:
	}
}
