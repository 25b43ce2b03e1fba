// Package steadyclock is a clock that a jump of the system's clock does not move.
//
// Deadlines, pauses and waits of sagas are points in time, because they have to survive the process. A
// clock that is set forward by an hour would end them all. Within a process, Go also measures time
// without the clock; if the two disagree, the database's clock decides which one is right. So one of
// the two clocks can jump, and nothing expires early. If both jump at once, their time is taken.
package steadyclock

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	// tolerance is the largest step that is followed at once, in either direction. Time daemons set a
	// clock by less than this when they correct it in normal operation.
	tolerance = 2 * time.Second
	// MaxDifference is how far the operator's clock and the database's may be apart when an operator
	// starts. Nothing tells which one is right then.
	MaxDifference = time.Minute
	// interval is the time between two looks at the database's clock.
	interval = 5 * time.Second
	// lookTimeout limits one look. A slow one says little: its delay is part of the difference.
	lookTimeout = 5 * time.Second
)

// Clock tells the time. It is safe for concurrent use.
type Clock struct {
	wall      func() time.Time
	elapsed   func() time.Duration
	reference func(context.Context) (time.Time, error)

	mu sync.Mutex
	// anchor was the time when elapsed was at.
	anchor time.Time
	at     time.Duration
	// seen is what the reference was ahead of elapsed, as a time, when it was looked at last.
	seen   time.Time
	looked bool
	// ahead is what the system's clock was ahead of the reference at the last look.
	ahead time.Duration
	// waiting is why Await has not returned.
	waiting error
}

// New returns a clock of the system's clock and of the time that has elapsed since some point in the
// past, which does not jump. reference asks another machine for its time.
func New(wall func() time.Time, elapsed func() time.Duration, reference func(context.Context) (time.Time, error)) *Clock {
	return &Clock{wall: wall, elapsed: elapsed, reference: reference, anchor: wall().Round(0), at: elapsed()}
}

// Difference returns by how much the system's clock was ahead of the reference at the last look.
func (c *Clock) Difference() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ahead
}

// Ready returns the reason why Await waits, and nil if it does not.
func (c *Clock) Ready(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waiting
}

// Now returns the time: that of the system's clock unless the clock was set and the reference does not
// agree with it. The result has no monotonic reading.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now()
}

// now follows the system's clock over small steps, and over large ones if the reference is nearer to it
// than to the time that has elapsed. c.mu is held.
func (c *Clock) now() time.Time {
	wall, elapsed := c.wall().Round(0), c.elapsed()
	steady := c.anchor.Add(elapsed - c.at)
	if wall.Sub(steady).Abs() > tolerance {
		reference := c.seen.Add(elapsed)
		if !c.looked || reference.Sub(wall).Abs() >= reference.Sub(steady).Abs() {
			return steady
		}
	}
	c.anchor, c.at = wall, elapsed
	return wall
}

// look asks for the time of the reference, and returns by how much this clock and the system's are ahead
// of it.
func (c *Clock) look(ctx context.Context) (steady, system time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	began := c.elapsed()
	reference, err := c.reference(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("reading the database's clock: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ended := c.elapsed()
	c.seen, c.looked = reference.Round(0).Add(-(began + (ended-began)/2)), true
	reference = c.seen.Add(ended)
	c.ahead = c.wall().Round(0).Sub(reference)
	return c.now().Sub(reference), c.ahead, nil
}

// Await waits until the system's clock and the reference are at most MaxDifference apart, or until ctx is
// done. An operator calls it before it decides anything: nothing else tells which clock is right.
func (c *Clock) Await(ctx context.Context, log *slog.Logger) {
	for told := false; ; {
		err := c.agree(ctx)
		c.mu.Lock()
		c.waiting = err
		c.mu.Unlock()
		if err == nil || ctx.Err() != nil {
			return
		}
		if !told {
			log.Warn("waiting for the clocks", "error", err)
			told = true
		}
		if !pause(ctx) {
			return
		}
	}
}

// agree anchors the clock to the system's, and fails if the reference does not agree with that.
func (c *Clock) agree(ctx context.Context) error {
	_, system, err := c.look(ctx)
	if err != nil {
		return err
	}
	if system.Abs() > MaxDifference {
		return fmt.Errorf("comparing clocks: the operator's is %s the database's, and at most %s is allowed, because deadlines would end early or late; correct the wrong one",
			relation(system), MaxDifference)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.anchor, c.at = c.wall().Round(0), c.elapsed()
	return nil
}

// relation says in words how far one clock is ahead of another.
func relation(ahead time.Duration) string {
	if ahead < 0 {
		return (-ahead).Round(time.Second).String() + " behind"
	}
	return ahead.Round(time.Second).String() + " ahead of"
}

// Watch looks at the reference now and then until ctx is done. It reports a clock that was set, once,
// until the clocks agree again.
func (c *Clock) Watch(ctx context.Context, log *slog.Logger) {
	reported := false
	for pause(ctx) {
		steady, system, err := c.look(ctx)
		switch apart := max(steady.Abs(), system.Abs()) > MaxDifference; {
		case err != nil: // the readiness check of the database reports an outage
		case apart && !reported:
			reported = true
			log.Error("one clock was set: correct it; until then the operator keeps to the time from before",
				"operator", relation(system)+" the database's clock", "used", relation(steady)+" the database's clock")
		case !apart && reported:
			reported = false
			log.Info("the clocks of the operator and of the database agree again")
		}
	}
}

// pause waits for the interval, and reports false if ctx is done.
func pause(ctx context.Context) bool {
	timer := time.NewTimer(interval)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
