package run

import (
	"github.com/vextrus/saga-operator/internal/egress"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/participant"
	participanthttp "github.com/vextrus/saga-operator/internal/participant/http"
	"github.com/vextrus/saga-operator/internal/participant/message"
)

// participants are the kinds of participant that this operator has. A new kind is one more line here.
func participants(c Config, policy *egress.Policy, sinks message.Sinks, tokens *engine.Callbacks) participant.Registry {
	return participant.Registry{
		participanthttp.Kind: participanthttp.New(participanthttp.Options{
			Egress: policy, MaxAnswerBytes: c.MaxAnswerBytes, UserAgent: "saga-operator/" + Version, Clock: tokens.Clock, Callbacks: callbacks(c, tokens),
		}),
		message.Kind: message.New(sinks, engine.SourceOf),
	}
}
