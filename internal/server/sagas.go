package server

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/operations"
	"github.com/vextrus/saga-operator/internal/saga"
	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// NamespacePath is the path of what concerns a namespace. It is exported because huma fills what is embedded only where it is.
type NamespacePath struct {
	Namespace string `path:"namespace" maxLength:"63" pattern:"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" patternDescription:"the name of a namespace" doc:"The namespace of the saga." example:"shop"`
}

// SagaPath is the path of what concerns a saga.
type SagaPath struct {
	NamespacePath
	Name string `path:"name" maxLength:"253" pattern:"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$" patternDescription:"the name of an object" doc:"The name of the saga." example:"order-1042"`
}

func (in *SagaPath) ref() operations.Ref {
	return operations.Ref{Namespace: in.Namespace, Name: in.Name}
}

// sagaOutput is one saga.
type sagaOutput struct{ Body sagaObject }

func answered(o operations.Object, err error) (*sagaOutput, error) {
	if err != nil {
		return nil, err
	}
	return &sagaOutput{Body: sagaObject(o.JSON)}, nil
}

// newSaga is a saga as a client writes it: as for kubectl, but nothing in its metadata that it is not for a client to say.
type newSaga struct {
	APIVersion string          `json:"apiVersion,omitempty" enum:"saga.vextrus.io/v1"`
	Kind       string          `json:"kind,omitempty" enum:"Saga"`
	Metadata   newSagaMetadata `json:"metadata"`
	Spec       sagaSpec        `json:"spec"`
}

type newSagaMetadata struct {
	Name         string            `json:"name,omitempty" maxLength:"253" doc:"The saga's name. Either this or generateName is needed."`
	GenerateName string            `json:"generateName,omitempty" maxLength:"243" doc:"A prefix of the name; what is added to it follows from the Idempotency-Key."`
	Namespace    string            `json:"namespace,omitempty" maxLength:"63" doc:"The namespace of the path, if it is given at all."`
	Labels       map[string]string `json:"labels,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty" doc:"None of the domain saga.vextrus.io."`
}

type createInput struct {
	NamespacePath
	Key  string `header:"Idempotency-Key" maxLength:"512" doc:"Names this one saga: a value that you use for nothing else, such as a UUID, and send again when you repeat the request." example:"8e03978e-40d5-43dd-bc93-6894a57f9324"`
	Body newSaga
}

type createOutput struct {
	Location string `header:"Location" doc:"The path of the saga."`
	Replayed string `header:"Idempotency-Replayed" doc:"true where the answer was given before."`
	Body     sagaObject
}

func (s *Server) createSaga(ctx context.Context, in *createInput) (*createOutput, error) {
	key, err := idempotency.KeyOf(exchangeOf(ctx).header)
	if err == nil && key == "" {
		return nil, newProblem(http.StatusBadRequest, "KeyMissing", "the header Idempotency-Key is missing: name this saga with a key that is yours alone, such as a UUID, and send the same one again when you repeat the request")
	}
	if err != nil {
		return nil, err
	}
	m := in.Body.Metadata
	if m.Namespace != "" && m.Namespace != in.Namespace {
		return nil, &operations.InvalidError{Message: "the namespace of the saga is not that of the path", Fields: []operations.Field{{Name: "metadata.namespace", Message: "is not " + in.Namespace}}}
	}
	who, _ := operations.CallerOf(ctx)
	ctx, carriedOut := operations.NotingReplay(ctx)
	o, err := cqrs.Send(ctx, s.commands.Commands, operations.StartSaga{
		Namespace: in.Namespace, Name: m.Name, GenerateName: m.GenerateName, Labels: m.Labels, Annotations: m.Annotations,
		Spec: json.RawMessage(in.Body.Spec), User: who.Name, Key: key,
	})
	if err != nil {
		return nil, err
	}
	var made struct{ Metadata struct{ Name string } }
	if err := json.Unmarshal(o.JSON, &made); err != nil {
		return nil, err
	}
	out := &createOutput{Location: "/v1/namespaces/" + in.Namespace + "/sagas/" + made.Metadata.Name, Body: sagaObject(o.JSON)}
	if !carriedOut() {
		out.Replayed = "true"
	}
	return out, nil
}

func (s *Server) getSaga(ctx context.Context, in *SagaPath) (*sagaOutput, error) {
	return answered(cqrs.Ask(ctx, s.commands.Queries, operations.GetSaga{Ref: in.ref()}))
}

type listInput struct {
	NamespacePath
	Phase         string `query:"phase" enum:"Pending,Running,Compensating,Completed,Compensated,CompensationFailed,Abandoned" doc:"Only sagas of this phase. One that the operator has not seen yet has none."`
	LabelSelector string `query:"labelSelector" maxLength:"4096" doc:"Only sagas with these labels, in the syntax of kubectl." example:"app=shop"`
	Limit         int    `query:"limit" minimum:"1" maximum:"500" default:"100" doc:"How many sagas the answer has at most."`
	Continue      string `query:"continue" maxLength:"8192" doc:"The value of continue in the answer before."`
}

type sagaList struct {
	Items     []sagaObject `json:"items" nullable:"false" doc:"The sagas, by name."`
	Continue  string       `json:"continue,omitempty" doc:"Ask for the next page with it. It is missing on the last page."`
	Remaining *int64       `json:"remaining,omitempty" doc:"How many more there are, where that is known."`
}

type listOutput struct{ Body sagaList }

func (s *Server) listSagas(ctx context.Context, in *listInput) (*listOutput, error) {
	l, err := cqrs.Ask(ctx, s.commands.Queries, operations.ListSagas{
		Namespace: in.Namespace, Phase: in.Phase, LabelSelector: in.LabelSelector, Limit: in.Limit, Continue: in.Continue,
	})
	if err != nil {
		return nil, err
	}
	out := &listOutput{Body: sagaList{Items: make([]sagaObject, 0, len(l.Items)), Continue: l.Continue, Remaining: l.Remaining}}
	for _, item := range l.Items {
		out.Body.Items = append(out.Body.Items, sagaObject(item))
	}
	return out, nil
}

func (s *Server) suspendSaga(ctx context.Context, in *SagaPath) (*sagaOutput, error) {
	return answered(cqrs.Send(ctx, s.commands.Commands, operations.SuspendSaga{Ref: in.ref()}))
}

func (s *Server) resumeSaga(ctx context.Context, in *SagaPath) (*sagaOutput, error) {
	return answered(cqrs.Send(ctx, s.commands.Commands, operations.ResumeSaga{Ref: in.ref()}))
}

func (s *Server) cancelSaga(ctx context.Context, in *SagaPath) (*sagaOutput, error) {
	return answered(cqrs.Send(ctx, s.commands.Commands, operations.CancelSaga{Ref: in.ref()}))
}

type decision struct {
	Step    string `json:"step,omitempty" maxLength:"63" doc:"The step that is decided about; all whose compensation has failed where it is missing."`
	Verdict string `json:"verdict" enum:"Retry,MarkCompensated,Skip" doc:"Retry tries the compensation again. MarkCompensated takes the step for undone, because somebody has undone it by hand. Skip leaves it done, and goes on."`
	Reason  string `json:"reason" minLength:"1" maxLength:"1024" doc:"Why, for those who read the history."`
	About   int64  `json:"about,omitempty" minimum:"0" doc:"The version at which the saga was parked: status.recordedVersion of the parked saga. A decision about another parking is a conflict. Without it the present parking is meant."`
}

// decideOutput carries the id by which a decision counts once.
type decideOutput struct {
	DecisionID string `header:"Saga-Decision-Id" doc:"The id of the decision. It comes from the Idempotency-Key; without one it is new."`
	Body       sagaObject
}

type decideInput struct {
	SagaPath
	Key  string `header:"Idempotency-Key" maxLength:"512" doc:"Names this one decision, so that it counts once."`
	Body decision
}

func (s *Server) decideSaga(ctx context.Context, in *decideInput) (*decideOutput, error) {
	key, err := idempotency.KeyOf(exchangeOf(ctx).header)
	if err != nil {
		return nil, err
	}
	who, _ := operations.CallerOf(ctx)
	id := operations.DecisionID(who.Name, key)
	o, err := cqrs.Send(ctx, s.commands.Commands, operations.DecideSaga{
		Ref: in.ref(), Step: in.Body.Step, Verdict: saga.Verdict(in.Body.Verdict), Reason: in.Body.Reason, About: in.Body.About, User: who.Name, Key: key, ID: id,
	})
	if err != nil {
		return nil, err
	}
	return &decideOutput{DecisionID: id, Body: sagaObject(o.JSON)}, nil
}

type abandonment struct {
	Reason string `json:"reason" minLength:"1" maxLength:"1024" doc:"Why, for those who find what the saga has left behind. It has at most 1,024 bytes."`
	UID    string `json:"uid,omitempty" format:"uuid" doc:"The uid of the saga. It is required if the object of the saga is gone, or another saga has its name; the history and the log of the operator have it."`
}

type abandonInput struct {
	SagaPath
	Body abandonment
}

type abandonedSaga struct {
	UID       string   `json:"uid" format:"uuid" doc:"The uid of the saga."`
	Phase     string   `json:"phase" enum:"Abandoned"`
	MayRemain []string `json:"mayRemain" nullable:"true" doc:"The steps whose effects may remain, in the order of the definition. It is null if that is not known, because the operator cannot read what is recorded of the saga."`
}

type abandonOutput struct{ Body abandonedSaga }

func (s *Server) abandonSaga(ctx context.Context, in *abandonInput) (*abandonOutput, error) {
	a, err := cqrs.Send(ctx, s.commands.Commands, operations.AbandonSaga{Ref: in.ref(), Reason: in.Body.Reason, UID: in.Body.UID})
	if err != nil {
		return nil, err
	}
	return &abandonOutput{Body: abandonedSaga{UID: a.UID, Phase: string(a.Phase), MayRemain: a.MayRemain}}, nil
}

type callbackAnswer struct {
	Outcome string  `json:"outcome" enum:"Succeeded,Rejected" doc:"What became of it. Rejected is a definite no: it has not happened, and will not."`
	Reason  string  `json:"reason,omitempty" maxLength:"1024" doc:"Why it was rejected, in one word for programs."`
	Message string  `json:"message,omitempty" maxLength:"1024" doc:"Why it was rejected, for people."`
	Body    anyJSON `json:"body,omitempty" doc:"Any JSON; the outputs of the step read it as response.body."`
}

type callbackInput struct {
	Token string `path:"token" maxLength:"128" doc:"The token of the URL."`
	Body  callbackAnswer
}

func (s *Server) answerCallback(ctx context.Context, in *callbackInput) (*struct{}, error) {
	_, err := cqrs.Send(ctx, s.commands.Commands, operations.AnswerCallback{
		Token: operations.Token(in.Token), Rejected: in.Body.Outcome == "Rejected", Reason: in.Body.Reason, Message: in.Body.Message, Body: json.RawMessage(in.Body.Body),
	})
	return nil, err
}
