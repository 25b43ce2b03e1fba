package effect

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// Effect is one thing that a caller wants to have happened.
type Effect struct {
	// Verb and Order name it: "charge", "1042".
	Verb, Order string
	// Status is the status of the answer when it has happened.
	Status int
	// Do makes it happen, within the transaction and nowhere else. What it changed is undone when it returns an error. A *Refusal is a
	// definite no, and is stored as an answer like any other; after any other error nothing is stored and the caller may try again.
	Do func(ctx context.Context, tx pgx.Tx) (Result, error)
}

func (e Effect) name() string { return e.Verb + " " + e.Order }

// Result is what came of an effect.
type Result struct {
	// Changed tells whether there was anything to do; undoing nothing has nothing to do.
	Changed bool
	// Body is answered as JSON.
	Body any
}

// Refusal is a definite no: the effect has not happened, and will not happen under this key.
type Refusal struct {
	Status  int // 4xx
	Message string
}

func (r *Refusal) Error() string { return fmt.Sprintf("%s (%d)", r.Message, r.Status) }

// Refuse makes a Refusal.
func Refuse(status int, format string, args ...any) error {
	return &Refusal{Status: status, Message: fmt.Sprintf(format, args...)}
}

// Handle adds a kind of effect. parse turns a request into an effect; its errors are answered with 400, and not stored.
func (s *Service) Handle(pattern string, parse func(*Request) (Effect, error)) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		req, err := read(w, r)
		if err != nil {
			writeRefusal(w, err)
			return
		}
		e, err := parse(req)
		if err != nil {
			writeMessage(w, http.StatusBadRequest, err.Error())
			return
		}
		s.serve(w, r, req, e)
	})
}

// serve answers one delivery of an effect.
func (s *Service) serve(w http.ResponseWriter, r *http.Request, req *Request, e Effect) {
	// What was begun is finished, whether or not the caller still waits for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), timeout)
	defer cancel()
	if _, err := s.pool.Exec(ctx, s.sql.log, req.Key, e.name(), "delivered"); err != nil {
		s.log.Error("the database does not take a call", "effect", e.name(), "key", req.Key, "error", err)
		unavailable(w, time.Second, "the database does not answer")
		return
	}

	fault := s.faults.draw()
	if !fault.before(w, r) {
		return
	}
	if s.gate != nil {
		if pause := s.gate(e); pause > 0 {
			unavailable(w, pause, s.schema+" is unavailable")
			return
		}
	}

	ctx, cancel = context.WithTimeout(context.WithoutCancel(r.Context()), timeout) // a delay is not part of the work
	defer cancel()
	a, err := s.once(ctx, req, e)
	if err != nil {
		// 500 and not 503: whether the transaction has committed may not be known.
		s.log.Error("an effect failed", "effect", e.name(), "key", req.Key, "error", err)
		writeMessage(w, http.StatusInternalServerError, "something went wrong; try again with the same key")
		return
	}
	if fault.lose {
		panic(http.ErrAbortHandler) // closes the connection without an answer
	}
	a.write(w)
}

// once makes an effect happen unless its key is known, and returns the answer to it.
func (s *Service) once(ctx context.Context, req *Request, e Effect) (a answer, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, s.sql.claim, req.Key, req.fingerprint[:])
		if err != nil {
			return fmt.Errorf("claiming the key: %w", err)
		}
		if tag.RowsAffected() == 0 {
			a, err = s.replay(ctx, tx, req)
			return err
		}
		what, fresh, err := do(ctx, tx, e)
		if err != nil {
			return err
		}
		a = fresh
		batch := &pgx.Batch{}
		batch.Queue(s.sql.log, req.Key, e.name(), what)
		batch.Queue(s.sql.store, req.Key, a.status, a.body)
		if err := tx.SendBatch(ctx, batch).Close(); err != nil {
			return fmt.Errorf("storing the answer: %w", err)
		}
		return nil
	})
	return a, err
}

// do runs the effect in a savepoint, so that a refusal leaves nothing behind but itself.
func do(ctx context.Context, tx pgx.Tx, e Effect) (what string, a answer, err error) {
	var result Result
	err = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
		var err error
		result, err = e.Do(ctx, tx)
		return err
	})
	var no *Refusal
	switch {
	case errors.As(err, &no):
		a, err = newAnswer(no.Status, message{no.Message})
		return "refused", a, err
	case err != nil:
		return "", answer{}, err
	case result.Changed:
		what = "acted"
	default:
		what = "nothing"
	}
	a, err = newAnswer(e.Status, result.Body)
	return what, a, err
}

// replay returns what was answered under the key before.
func (s *Service) replay(ctx context.Context, tx pgx.Tx, req *Request) (a answer, err error) {
	var fingerprint []byte
	if err := tx.QueryRow(ctx, s.sql.stored, req.Key).Scan(&fingerprint, &a.status, &a.body); err != nil {
		return a, fmt.Errorf("reading the stored answer: %w", err)
	}
	if !bytes.Equal(fingerprint, req.fingerprint[:]) {
		return newAnswer(http.StatusUnprocessableEntity, message{"this Idempotency-Key was used for another request"})
	}
	return a, nil
}

// answer is a status and a body, byte for byte.
type answer struct {
	status int
	body   []byte
}

func newAnswer(status int, body any) (answer, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return answer{}, fmt.Errorf("encoding the answer: %w", err)
	}
	return answer{status, append(b, '\n')}, nil
}

func (a answer) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // the caller is gone; it will ask again
}

type message struct {
	Message string `json:"message"`
}

func write(w http.ResponseWriter, status int, body any) {
	a, err := newAnswer(status, body)
	if err != nil {
		a = answer{status: http.StatusInternalServerError}
	}
	a.write(w)
}

func writeMessage(w http.ResponseWriter, status int, text string) { write(w, status, message{text}) }

func writeRefusal(w http.ResponseWriter, err error) {
	var no *Refusal
	if !errors.As(err, &no) {
		no = &Refusal{http.StatusBadRequest, err.Error()}
	}
	writeMessage(w, no.Status, no.Message)
}

func unavailable(w http.ResponseWriter, pause time.Duration, text string) {
	seconds := max(1, int((pause+time.Second-1)/time.Second))
	w.Header().Set("Retry-After", strconv.Itoa(seconds))
	writeMessage(w, http.StatusServiceUnavailable, text)
}

// fingerprint tells two requests apart that come with the same key.
func fingerprint(method, path string, body []byte) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%s %s\n", method, path)
	h.Write(body)
	return [sha256.Size]byte(h.Sum(nil))
}
