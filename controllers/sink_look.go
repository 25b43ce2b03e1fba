package controllers

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
)

// sinkEntry is what is remembered of a sink. Losing it costs a connection.
type sinkEntry struct {
	id string
	// generation is that of the spec which was last looked at, and lookAt when it is time to look again although it has not changed; zero for never.
	generation int64
	lookAt     time.Time
	kind       v1.SinkKind
	// mendPause is the pause before the sink is looked at again because of its problem.
	mendPause time.Duration
	// begun says that the outbox knows of the sink, so that what is committed waits for it.
	begun bool
	// overQuota says that the quota of its namespace did not allow it.
	overQuota bool
	// problem is why nothing is published; nil where something is.
	problem *sinkProblem
	// publisher is the one that the relay has, and made names what it was made from: the generation, and the versions of the Secrets.
	publisher outbox.Publisher
	made      string

	// failure is what the last check came to, nil when all was well; checkAt is when the next one is due, after a pause; publishedThen is how many messages had been published
	// when it began to fail so. More of them show that the destination takes messages, whatever it says to a check.
	failure       *sinkProblem
	checkAt       time.Time
	pause         time.Duration
	publishedThen int64

	// written is the status that was written last, over the object of version wroteOver: as long as the cache shows that one, it has not caught up.
	written   *v1.SinkStatus
	wroteOver string
}

// sinkProblem is why a sink is not ready.
type sinkProblem struct {
	// reason is one word for programs; message is for people, and says what to do.
	reason, message string
}

// The usual bounds of a sink.
const (
	usualSinkTimeout        = 10 * time.Second
	usualSinkAttempts       = 20
	usualSinkInitialBackoff = time.Second
	usualSinkMaxBackoff     = 5 * time.Minute
)

// look compares what is published to with what is wanted, and changes it where they differ. What is wrong with the sink becomes the entry's problem. An error is one of the
// surroundings: nothing is changed for it, and it is tried again.
func (r *SinkReconciler) look(ctx context.Context, s *sinkObject, e *sinkEntry) error {
	now := r.Clock()
	problem := r.overQuota(s)
	overQuota := problem != nil
	if e.generation == s.GetGeneration() && e.overQuota == overQuota && (e.lookAt.IsZero() || now.Before(e.lookAt)) {
		return nil
	}
	if problem == nil {
		problem = r.begin(ctx, s, e)
	}
	var p *sinkPlan
	if problem == nil {
		var err error
		if p, problem, err = r.plan(ctx, s); err != nil {
			return fmt.Errorf("looking at sink %s: %w", s.title, err)
		}
	}
	e.kind, e.lookAt = kindOf(s.spec), time.Time{}
	switch {
	case problem != nil:
		r.stop(e)
		if !waitsForChange(problem.reason) {
			e.lookAt = now.Add(e.nextMendPause(s, problem, &r.pace))
		}
	case e.publisher == nil || e.made != p.made:
		if problem = r.start(ctx, e, p); problem != nil {
			e.lookAt = now.Add(e.nextMendPause(s, problem, &r.pace))
		}
	}
	if problem == nil && p.dependent {
		e.lookAt = now.Add(r.pace.look)
	}
	if problem != nil && (e.problem == nil || *e.problem != *problem) {
		r.Logger.Info("a sink is not published to", "sink", s.title, "reason", problem.reason, "message", problem.message)
	}
	e.problem, e.generation, e.overQuota = problem, s.GetGeneration(), overQuota
	return nil
}

// nextMendPause returns the pause before a sink with a problem is looked at again. It grows while the
// problem stays the same. No watch tells that the right to read a Secret was given, for example.
func (e *sinkEntry) nextMendPause(s *sinkObject, problem *sinkProblem, pace *sinkPace) time.Duration {
	if e.generation != s.GetGeneration() || e.problem == nil || e.problem.reason != problem.reason {
		e.mendPause = 0
	}
	e.mendPause = min(max(2*e.mendPause, pace.mend), pace.look)
	return e.mendPause
}

// waitsForChange reports whether a problem stays until an object changes, so that it is not looked at again
// before.
func waitsForChange(reason string) bool {
	return reason == v1.SinkReasonSuspended || reason == v1.SinkReasonInvalid || reason == v1.SinkReasonQuotaExceeded ||
		reason == v1.SinkReasonNotEncrypted
}

// begin makes the sink's place in the outbox when it is first seen, whatever else is wrong with it: what happens from its creation on waits for it.
func (r *SinkReconciler) begin(ctx context.Context, s *sinkObject, e *sinkEntry) *sinkProblem {
	if e.begun {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	if err := r.Relay.Begin(ctx, s.id(), s.title); err != nil {
		return r.outboxAway(s.title, err)
	}
	e.begun = true
	return nil
}

// outboxAway is what is wrong with a sink whose place in the outbox cannot be had.
func (r *SinkReconciler) outboxAway(title string, err error) *sinkProblem {
	r.Logger.Warn("a sink could not be added; it is tried again", "sink", title, "error", err)
	return &sinkProblem{v1.SinkReasonOutboxUnavailable, "The operator's database does not answer; it is tried again. If this stays, look at the operator's log."}
}

// sinkPlan is how a sink is to be published to.
type sinkPlan struct {
	sink outbox.Sink // without its publisher
	dest *destination
	conn sink.Connection
	// made names what the plan was made from; dependent says that this is more than the spec.
	made      string
	dependent bool
	secrets   hidden
}

// plan works out how a sink is to be published to, or what is wrong with it.
func (r *SinkReconciler) plan(ctx context.Context, s *sinkObject) (*sinkPlan, *sinkProblem, error) {
	if s.spec.Suspend {
		return nil, &sinkProblem{v1.SinkReasonSuspended, "Nothing is published until spec.suspend is false again; what would have been waits."}, nil
	}
	dest, wants, problem := r.route(s)
	if problem != nil {
		return nil, problem, nil
	}
	all, problem, err := r.readSecrets(ctx, s, dest)
	if problem != nil || err != nil {
		return nil, problem, err
	}
	p := &sinkPlan{
		dest: dest, secrets: all.hidden, dependent: all.versions != "", made: fmt.Sprintf("%d %s", s.GetGeneration(), all.versions),
		sink: outbox.Sink{ID: s.id(), Name: s.title, Wants: wants, Prepare: r.prepare(s), Retry: retryOf(s.spec.Retry), Timeout: timeoutOf(s.spec), Replies: s.spec.Replies},
		conn: sink.Connection{Dial: all.guarded(r.Dial), Credentials: all.credentials, Timeout: timeoutOf(s.spec), Mode: outbox.Mode(s.spec.Mode)},
	}
	if p.conn.Mode == "" {
		p.conn.Mode = outbox.Binary
	}
	if dest.encrypted {
		p.conn.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: all.trusted, Certificates: all.certificates}
		if s.spec.TLS != nil {
			p.conn.TLS.ServerName = s.spec.TLS.ServerName
		}
	}
	return p, nil, nil
}

// route reads which messages go where, or what is wrong with that.
func (r *SinkReconciler) route(s *sinkObject) (*destination, func(*outbox.Message) bool, *sinkProblem) {
	dest, err := destinationOf(s.spec)
	if err != nil {
		return nil, nil, invalidSpec(err.Error())
	}
	if problem := dest.plaintextProblem(s.spec); problem != nil {
		return nil, nil, problem
	}
	wants, err := r.wants(s)
	if err != nil {
		return nil, nil, invalidSpec(err.Error())
	}
	return dest, wants, nil
}

func invalidSpec(what string) *sinkProblem {
	const advice = ". Correct the spec."
	return &sinkProblem{v1.SinkReasonInvalid, clip(what, maxConditionMessage-len(advice)) + advice}
}

// start has a sink published to by a new publisher.
func (r *SinkReconciler) start(ctx context.Context, e *sinkEntry, p *sinkPlan) *sinkProblem {
	publisher, err := p.dest.publisher(p.conn, r.UserAgent)
	if err != nil {
		r.stop(e)
		return invalidSpec(p.secrets.redact(err.Error()))
	}
	p.sink.Publisher = r.around(p.secrets.around(publisher))
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	if err := r.Relay.Set(ctx, p.sink); err != nil {
		_ = p.sink.Publisher.Close() // it has not connected yet
		return r.outboxAway(p.sink.Name, err)
	}
	e.publisher, e.made = p.sink.Publisher, p.made
	e.failure, e.pause, e.checkAt = nil, 0, time.Time{}
	return nil
}

// check looks whether the destination takes messages, when that is due. It holds up nothing but this sink's status: the relay tries by itself.
func (r *SinkReconciler) check(ctx context.Context, s *sinkObject, e *sinkEntry) {
	if e.publisher == nil {
		return
	}
	if r.Clock().Before(e.checkAt) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, min(timeoutOf(s.spec), maxCheckTimeout))
	defer cancel()
	err := e.publisher.Check(ctx)
	if err == nil {
		if e.failure != nil {
			r.Logger.Info("a sink is ready again", "sink", s.title)
		}
		e.failure, e.pause, e.checkAt = nil, 0, r.Clock().Add(r.pace.recheck)
		return
	}
	failure := problemOf(err)
	if e.failure == nil || e.failure.reason != failure.reason {
		r.Logger.Info("a sink is not ready; what is for it waits", "sink", s.title, "reason", failure.reason, "message", failure.message)
	}
	if standing, _ := r.standing(e.id); e.failure == nil || e.failure.reason != failure.reason || unanswered[failure.reason] {
		e.publishedThen = standing.Published
	}
	e.pause = min(max(2*e.pause, r.pace.firstCheck), r.pace.recheck)
	e.failure, e.checkAt = failure, r.Clock().Add(e.pause)
}

// unanswered are the reasons for which nothing was heard of a destination: what it took before says nothing of today. Where it answered, and takes messages all the same, it only
// answers checks so.
var unanswered = map[string]bool{
	outbox.ReasonConnectionFailed: true, outbox.ReasonEgressDenied: true, outbox.ReasonTLSFailed: true, outbox.ReasonTimeout: true, v1.SinkReasonSecretNotForHost: true,
}

// sinkAdvice is what to do about a reason.
var sinkAdvice = map[string]string{
	outbox.ReasonConnectionFailed: "Check the host and the port, and that network policies let the operator reach them.",
	outbox.ReasonTLSFailed:        "Check spec.tls: whom it trusts (ca.crt), the name in the destination's certificate (serverName), and the operator's own certificate.",
	outbox.ReasonUnauthorized:     "Check the Secret of spec.credentials, and what the destination lets its user do.",
	outbox.ReasonNotFound:         "Create it at the destination, or correct the spec.",
	outbox.ReasonTimeout:          "Check that the destination is up and answers within spec.timeout.",
	outbox.ReasonEgressDenied:     "Choose another destination, or have an administrator allow the address.",
	v1.SinkReasonSecretNotForHost: secretHostsAdvice,
}

// problemOf says what a destination's error means to a person.
func problemOf(err error) *sinkProblem {
	reason := outbox.ReasonConnectionFailed
	var known *outbox.Error
	if errors.As(err, &known) && known.Reason != "" {
		reason = known.Reason
	}
	var host *hostError
	if errors.As(err, &host) {
		reason = v1.SinkReasonSecretNotForHost
	}
	return &sinkProblem{reason, advised(err.Error(), reason)}
}

// advised is a message with what to do.
func advised(message, reason string) string {
	message = strings.TrimRight(strings.Join(strings.Fields(message), " "), ". ")
	advice := sinkAdvice[reason]
	if advice == "" {
		advice = "It is tried again."
	}
	return clip(message, maxConditionMessage-len(advice)-len(". ")) + ". " + advice
}

func timeoutOf(spec *v1.SinkSpec) time.Duration {
	if spec.Timeout != nil && spec.Timeout.Duration > 0 {
		return spec.Timeout.Duration
	}
	return usualSinkTimeout
}

func retryOf(r *v1.SinkRetry) outbox.Retry {
	out := outbox.Retry{MaxAttempts: usualSinkAttempts, InitialBackoff: usualSinkInitialBackoff, MaxBackoff: usualSinkMaxBackoff}
	if r == nil {
		return out
	}
	if r.MaxAttempts > 0 {
		out.MaxAttempts = int(r.MaxAttempts)
	}
	switch {
	case r.InitialBackoff != nil && r.MaxBackoff != nil:
		out.InitialBackoff, out.MaxBackoff = r.InitialBackoff.Duration, r.MaxBackoff.Duration
	case r.InitialBackoff != nil:
		out.InitialBackoff, out.MaxBackoff = r.InitialBackoff.Duration, max(r.InitialBackoff.Duration, usualSinkMaxBackoff)
	case r.MaxBackoff != nil:
		out.InitialBackoff, out.MaxBackoff = min(r.MaxBackoff.Duration, usualSinkInitialBackoff), r.MaxBackoff.Duration
	}
	return out
}
