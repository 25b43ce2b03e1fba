package effect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/pkg/idempotency"
	"github.com/vextrus/saga-operator/pkg/participant"
)

// Intent is what a request turned out to ask for, and about which order.
type Intent struct {
	Order string
	// After, where there is one, is called when it has been answered. It may be missed in a crash.
	After func()
	participant.Intent
}

// Parse turns a request into an intent, without doing anything.
type Parse func(*participant.Request) (Intent, error)

// Action adds a kind of action. verb names it in the log of calls.
func (s *Service) Action(pattern, verb string, parse Parse) {
	s.handle(pattern, verb, parse, s.Participant.Action)
}

// Compensation adds a kind of compensation.
func (s *Service) Compensation(pattern, verb string, parse Parse) {
	s.handle(pattern, verb, parse, s.Participant.Compensation)
}

func (s *Service) handle(pattern, verb string, parse Parse, handler func(func(*participant.Request) (participant.Intent, error)) http.Handler) {
	next := handler(func(r *participant.Request) (participant.Intent, error) {
		in, err := parse(r)
		if err != nil {
			return participant.Intent{}, err
		}
		c, ok := r.HTTP().Context().Value(callKey{}).(*call)
		if !ok {
			return participant.Intent{}, errors.New("this handler is not called through its service")
		}
		c.key, c.name, c.after = r.Key, verb+" "+in.Order, in.After
		if err := s.admit(r, c, in.Order); err != nil {
			return participant.Intent{}, err
		}
		in.Do = s.noted(c, in.Do)
		return in.Intent, nil
	})
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		c, kept := &call{}, &keeper{header: http.Header{}}
		next.ServeHTTP(kept, r.WithContext(context.WithValue(r.Context(), callKey{}, c)))
		s.answered(r.Context(), c, kept)
		if c.fault.lose {
			panic(http.ErrAbortHandler) // closes the connection without an answer
		}
		kept.send(w)
	})
}

// admit notes a delivery, and commits the faults that come before an effect.
func (s *Service) admit(r *participant.Request, c *call, order string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.HTTP().Context()), s.timeout)
	defer cancel()
	if _, err := s.pool.Exec(ctx, s.sql.log, c.key, c.name, delivered); err != nil {
		s.log.Error("the database does not take a call", "effect", c.name, "key", c.key, "error", err)
		return participant.NotNow(time.Second, "the database does not answer")
	}
	// Before the faults, which are for effects: a caller who has been turned away has to learn how
	// long it should wait.
	if s.gate != nil {
		if pause := s.gate(order); pause > 0 {
			return participant.NotNow(pause, "%s is unavailable", s.schema)
		}
	}
	c.fault = s.faults.draw()
	return c.fault.before(r.HTTP())
}

// noted has it noted, in the same transaction, that an effect has happened. One that was only accepted has not.
func (s *Service) noted(c *call, do func(context.Context, pgx.Tx) (participant.Answer, error)) func(context.Context, pgx.Tx) (participant.Answer, error) {
	return func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
		a, err := do(ctx, tx)
		c.done = err == nil
		if err == nil && a.Status != http.StatusAccepted {
			_, err = tx.Exec(ctx, s.sql.log, c.key, c.name, acted)
		}
		return a, err
	}
}

// answered notes what is not an effect: that there was nothing to do, or that it was refused.
func (s *Service) answered(ctx context.Context, c *call, kept *keeper) {
	if c.key == "" || kept.header.Get(idempotency.HeaderReplayed) != "" {
		return
	}
	if c.after != nil && kept.status < http.StatusMultipleChoices {
		c.after()
	}
	var what string
	switch {
	case kept.status < http.StatusMultipleChoices && !c.done:
		what = nothing
	case kept.status >= http.StatusBadRequest && kept.status < http.StatusInternalServerError && kept.status != http.StatusTooEarly && kept.status != http.StatusTooManyRequests && !c.done:
		what = refused
	default:
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.timeout)
	defer cancel()
	if _, err := s.pool.Exec(ctx, s.sql.log, c.key, c.name, what); err != nil {
		s.log.Warn("the log of calls misses one", "effect", c.name, "key", c.key, "error", err)
	}
}

// call is one delivery on its way.
type call struct {
	key, name string // as soon as it is known what it is
	after     func()
	fault     fault
	done      bool
}

type callKey struct{}

// keeper keeps an answer back until it is known whether it is to get lost.
type keeper struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (k *keeper) Header() http.Header         { return k.header }
func (k *keeper) Write(b []byte) (int, error) { return k.body.Write(b) }
func (k *keeper) WriteHeader(status int)      { k.status = status }

func (k *keeper) send(w http.ResponseWriter) {
	maps.Copy(w.Header(), k.header)
	w.WriteHeader(k.status)
	_, _ = w.Write(k.body.Bytes()) // whoever is gone asks again
}

// An order's id is a part of its saga's name.
var orderID = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$`)

// CheckOrder says what is wrong with the id of an order.
func CheckOrder(id string) error {
	if !orderID.MatchString(id) {
		return errors.New("order: 1 to 64 lower-case letters, digits and hyphens are needed, a letter or digit first and last")
	}
	return nil
}

// Order is the order that the wildcard {order} in the pattern stands for.
func Order(r *participant.Request) (string, error) {
	order := r.PathValue("order")
	return order, CheckOrder(order)
}

// DecodeBody reads the body of a request that is not for an effect: one JSON object without fields that into does not know.
func DecodeBody(w http.ResponseWriter, r *http.Request, into any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("the body is not the JSON that is needed: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind the JSON in the body")
	}
	return nil
}

// Write answers a request that is not for an effect.
func Write(w http.ResponseWriter, status int, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		status, text = http.StatusInternalServerError, nil
	}
	text = append(text, '\n')
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = w.Write(text) // whoever is gone asks again
}

// WriteMessage answers a request that is not for an effect with a message.
func WriteMessage(w http.ResponseWriter, status int, text string) {
	Write(w, status, map[string]string{"message": text})
}
