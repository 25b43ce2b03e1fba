package payments

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/pkg/participant"
)

// task is a capture that was put off. It is in a table: what was accepted is done however often this process is killed, and whoever asked is told until they have taken it.
type task struct {
	Order string `json:"order"`
	Key   string `json:"key"`
}

// Run does captures that were put off, and tells what became of them, until ctx is done. Any number of processes may.
func (s *Service) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Service.Run(ctx) })
	err := s.Participant.Run(ctx, s.do)
	wg.Wait()
	return err
}

// do does one. The money, the outcome and the line in the log of calls are committed together.
func (s *Service) do(ctx context.Context, tx pgx.Tx, w participant.Work) (participant.Outcome, error) {
	var t task
	if err := json.Unmarshal(w.Data, &t); err != nil {
		return participant.Outcome{}, fmt.Errorf("reading %s: %w", w.Effect, err)
	}
	id, err := collect(ctx, tx, t.Order)
	outcome := participant.Outcome{Body: map[string]string{"id": id}}
	if no := (*participant.Refusal)(nil); errors.As(err, &no) {
		outcome, err = participant.Outcome{Rejected: true, Reason: "Declined", Message: no.Message}, nil
	}
	if err == nil {
		err = s.Acted(ctx, tx, t.Key, "capture "+t.Order, !outcome.Rejected)
	}
	return outcome, err
}
