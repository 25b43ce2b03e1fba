package outbox

import "fmt"

// maxInARow is of how many keys of a shard messages may fail in a row, while nothing goes through, before the fault is taken for the sink's and not theirs.
const maxInARow = 200

// refusesAll reports whether so much has failed, and nothing gone through since, that the sink is to be left alone as if it could not be reached: no attempt counts and nothing more
// is parked. One message at a time is tried, until one goes through.
func (s *shard) refusesAll() bool { return s.inARow.Load() >= maxInARow }

// went counts messages that have gone through.
func (s *shard) went(n int) {
	if n > 0 {
		s.through.Add(int64(n))
		s.inARow.Store(0)
	}
}

// judge says whose fault a failure is, by what has become of the other messages of the shard; went has been told of those that went through with it. before is how many had gone
// through when the message was last refused for the sink's sake, and one more; zero where it was not.
func (s *shard) judge(err *Error, before *int64) *Error {
	switch through := s.through.Load() + 1; {
	case err == nil:
		return nil
	case err.Kind == Failed && s.refusesAll():
		return &Error{Kind: Unavailable, Reason: err.Reason, RetryAfter: err.RetryAfter, Open: true, Err: fmt.Errorf("%d messages in a row have failed, so the sink is left alone until it takes one; the last: %w", s.inARow.Load(), err.Err)}
	case err.Kind == Unavailable && err.Open:
		// Only a gateway was heard. Where the destination behind it takes other messages in between, it is this one that brings it down.
		others := *before > 0 && through > *before
		*before = through
		if others {
			return &Error{Kind: Failed, Reason: err.Reason, RetryAfter: err.RetryAfter, Err: err.Err}
		}
	}
	return err
}

// died says in the log that a message is a dead letter.
func (s *shard) died(m *Message, attempts int, failure *Error) {
	s.log.Error("a message is a dead letter; `manager outbox retry` or `drop` sends its key on", "message", m.ID, "type", m.Type, "key", m.Key, "attempts", attempts, "error", failure)
}
