package kafka

import (
	"context"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/vextrus/saga-operator/internal/outbox"
)

const (
	// pollRecords bounds what is handled between two commits, and so what comes again after a crash.
	pollRecords = 100
	// What is read at a time is bounded before and after decompression; the broker limits only
	// compressed batches.
	maxFetchBytes     = 8 << 20
	maxPartitionBytes = 2 << 20
	maxBatchBytes     = 16 << 20
	// A partition whose record was not handled is read again after a pause, which grows while nothing gets better.
	firstPause = 100 * time.Millisecond
	longPause  = 5 * time.Second
)

// Listen implements outbox.Listener: group is a consumer group, which starts at the beginning of the topic. A record that is not handled holds up those behind it in its
// partition, as it must if they are to keep their order.
func (p *Publisher) Listen(ctx context.Context, address, group string, handle func(context.Context, outbox.Incoming) error) error {
	s, err := newSession(p.where(), p.dial, func() []kgo.Opt {
		return append(p.connecting(),
			kgo.ConsumeTopics(address), kgo.ConsumerGroup(group), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
			// A partition is not taken away while its records are in somebody's hands, and only what was handled is committed.
			kgo.BlockRebalanceOnPoll(), kgo.DisableAutoCommit(),
			kgo.FetchMaxBytes(maxFetchBytes), kgo.FetchMaxPartitionBytes(maxPartitionBytes), kgo.MaxDecompressBatchBytes(maxBatchBytes), kgo.MaxConcurrentFetches(1))
	})
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.readable(ctx, address); err != nil {
		return err
	}
	r := &reader{session: s, address: address, handle: handle, wait: p.config.Wait(), pause: firstPause}
	for {
		if err := r.round(ctx); err != nil {
			return err
		}
	}
}

// reader reads one topic.
type reader struct {
	session *session
	address string
	handle  func(context.Context, outbox.Incoming) error
	wait    time.Duration // for an answer to a commit
	pause   time.Duration
}

// round handles what one poll brings, and commits what was handled.
func (r *reader) round(ctx context.Context) error {
	defer r.session.client.AllowRebalance()
	fetches := r.session.client.PollRecords(ctx, pollRecords)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, e := range fetches.Errors() { // what the client cannot mend by itself
		return unavailable(r.session.explain("reading topic "+r.address, e.Err))
	}
	var done []*kgo.Record
	again := map[int32]kgo.EpochOffset{}
	fetches.EachRecord(func(record *kgo.Record) {
		if _, held := again[record.Partition]; held || ctx.Err() != nil {
			return
		}
		if err := r.handle(ctx, incoming(record)); err != nil {
			again[record.Partition] = kgo.EpochOffset{Epoch: record.LeaderEpoch, Offset: record.Offset}
			return
		}
		done = append(done, record)
	})
	if err := r.commit(ctx, done); err != nil {
		return err
	}
	if len(again) == 0 {
		r.pause = firstPause
		return nil
	}
	r.session.client.SetOffsets(map[string]map[int32]kgo.EpochOffset{r.address: again})
	// Others may have the partitions during the pause: a second AllowRebalance does nothing.
	r.session.client.AllowRebalance()
	return r.rest(ctx, len(done) > 0)
}

// commit remembers what was handled, even when there is no time for more: otherwise it comes again.
func (r *reader) commit(ctx context.Context, done []*kgo.Record) error {
	if len(done) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.wait)
	defer cancel()
	if err := r.session.client.CommitRecords(ctx, done...); err != nil {
		return unavailable(r.session.explain("committing what was read from topic "+r.address, err))
	}
	return nil
}

func (r *reader) rest(ctx context.Context, progress bool) error {
	if progress {
		r.pause = firstPause
	}
	timer := time.NewTimer(r.pause)
	defer timer.Stop()
	r.pause = min(2*r.pause, longPause)
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func incoming(record *kgo.Record) outbox.Incoming {
	in := outbox.Incoming{Headers: make(map[string]string, len(record.Headers)), Body: record.Value}
	for _, h := range record.Headers {
		in.Headers[strings.ToLower(h.Key)] = string(h.Value)
	}
	return in
}
