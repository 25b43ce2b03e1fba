package saga

// Notice is what the world is told about an event. Inputs and outputs are not in it: they are between the saga and its participants.
type Notice struct {
	// What is one CamelCase word, such as StepSucceeded.
	What string
	// Step is the step that it is about; empty where it is about the saga.
	Step                   string
	Cause, Reason, Message string
	// Attempt is the attempt that made it happen, where there is one.
	Attempt Attempt
}

// The notices.
const (
	NoticeStarted            = "Started"
	NoticeStepSucceeded      = "StepSucceeded"
	NoticeStepRejected       = "StepRejected"
	NoticeStepFailed         = "StepFailed"
	NoticeCompensating       = "Compensating"
	NoticeStepCompensated    = "StepCompensated"
	NoticeCompleted          = "Completed"
	NoticeCompensated        = "Compensated"
	NoticeCompensationFailed = "CompensationFailed"
	NoticeParked             = "Parked"
	NoticeDecided            = "Decided"
	NoticeAbandoned          = "Abandoned"
)

// NoticeOf returns what the world is told about an event; false for events that are nobody else's business. State.Notices counts them, so which events have one must
// never change for events that are stored already.
func NoticeOf(e Event) (Notice, bool) {
	switch e := e.(type) {
	case SagaStarted:
		return Notice{What: NoticeStarted}, true
	case AttemptSucceeded:
		n := Notice{What: NoticeStepSucceeded, Step: e.Text(), Attempt: e.Attempt}
		if e.Direction == Compensation {
			n.What = NoticeStepCompensated
		}
		return n, true
	case AttemptFailed:
		return noticeOfFailure(e)
	case SagaCompensating:
		return Notice{What: NoticeCompensating, Step: e.Step, Cause: string(e.Cause), Reason: e.Reason, Message: e.Message}, true
	case SagaCompleted:
		return Notice{What: NoticeCompleted}, true
	case SagaCompensated:
		return Notice{What: NoticeCompensated}, true
	case SagaParked:
		return Notice{What: NoticeParked, Step: e.Step, Reason: e.Reason, Message: e.Message}, true
	case DecisionMade:
		return Notice{What: NoticeDecided, Step: e.Step, Reason: string(e.Verdict), Message: e.Reason}, true
	case SagaAbandoned:
		return Notice{What: NoticeAbandoned, Message: e.Reason}, true
	case AttemptStarted, AttemptResent, AttemptAccepted, SagaSuspended, SagaResumed:
		return Notice{}, false
	default:
		panic(unknownEvent(e))
	}
}

// noticeOfFailure: an attempt that is retried, or that was never sent, is not worth a notice.
func noticeOfFailure(e AttemptFailed) (Notice, bool) {
	if e.Next == NextRetry || e.Next == NextSettle || e.Outcome == NotSent {
		return Notice{}, false
	}
	n := Notice{What: NoticeStepFailed, Step: e.Text(), Reason: e.Reason, Message: e.Message, Attempt: e.Attempt}
	switch {
	case e.Direction == Compensation:
		n.What = NoticeCompensationFailed
	case e.Outcome == Rejected:
		n.What = NoticeStepRejected
	}
	return n, true
}
