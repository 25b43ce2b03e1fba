package participant

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// Request is what the operator asks for.
type Request struct {
	// Realm is what Options.Realm says; Key is the idempotency key, the same for all attempts of one effect.
	Realm, Key string
	// SagaID and Step say for which saga and step; TraceParent is the W3C trace context. Each is empty where the caller said nothing.
	SagaID, Step, TraceParent string
	// Callback is where to answer later; empty where the step does not ask for that.
	Callback string
	// Body is at most Options.MaxBody bytes long.
	Body []byte

	http   *http.Request
	effect Effect
	again  bool // its effect was done before, under its key
}

// Decode reads the body: one JSON value without fields that into does not know. Its error is to be answered with 400.
func (r *Request) Decode(into any) error {
	d := json.NewDecoder(bytes.NewReader(r.Body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("the body is not the JSON that is needed: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind the JSON in the body")
	}
	return nil
}

// PathValue is the value of a wildcard of the pattern under which the handler is registered.
func (r *Request) PathValue(name string) string { return r.http.PathValue(name) }

// HTTP is the request itself. Its body has been read.
func (r *Request) HTTP() *http.Request { return r.http }

// Answer is what a request is answered with.
type Answer struct {
	// Status is 2xx; 0 is 200.
	Status int
	// Body is sent as JSON.
	Body any
}

// Intent is what a request turned out to ask for.
type Intent struct {
	// Effect names what the action does and the compensation undoes: the same for both, and for no other pair. It may be empty where there is no compensation: then there is no barrier, and what
	// was done is known for Options.TTL only. An action that would be refused when it comes again later than that names one all the same.
	Effect string
	// Do does it, within the transaction and nowhere else. What it did is undone when it returns an error. A *Refusal is a definite no, and that of an action is kept as an answer is; a *Delay says that nothing
	// has happened; after any other error the outcome is unknown, and the operator tries again under the same key. It may run more than once for one effect, but be committed once.
	Do func(ctx context.Context, tx pgx.Tx) (Answer, error)
	// Nothing is what a compensation is answered with that finds nothing to undo; nil is 200 and {"undone": false}.
	Nothing *Answer
}

// Action makes a handler of an action. parse turns a request into an intent, without doing anything; its error is answered with 400, or as its *Refusal or *Delay says, and not kept.
//
// A request that comes again under its key is answered as before, however late, as long as its barrier is kept. Where another request has done the effect before, under another key, or its
// compensation has been here, the answer is 409: a definite no.
func (s *Service) Action(parse func(*Request) (Intent, error)) http.Handler {
	return s.handler(parse, func(ctx context.Context, tx pgx.Tx, r *Request, in *Intent) (idempotency.Response, error) {
		a, err := act(ctx, tx, r, in)
		if no := (*Refusal)(nil); errors.As(err, &no) {
			err = &idempotency.Refusal{Response: idempotency.Response(plain(no.Status, no.Message))}
		}
		return a, err
	})
}

// act carries an action out that was not carried out before.
func act(ctx context.Context, tx pgx.Tx, r *Request, in *Intent) (idempotency.Response, error) {
	if r.effect.Name == "" {
		return encodeAnswer(in.Do(ctx, tx))
	}
	turn, before, err := enter(ctx, tx, r.effect, &r.Key)
	switch {
	case err != nil:
		return idempotency.Response{}, err
	case before != nil:
		r.again = true
		return *before, nil
	case turn == Undone:
		return idempotency.Response{}, Refuse(http.StatusConflict, "%s has been undone already", r.effect.Name)
	case turn == Repeated:
		return idempotency.Response{}, Refuse(http.StatusConflict, "%s has been done already, under another key", r.effect.Name)
	}
	a, err := encodeAnswer(in.Do(ctx, tx))
	if err == nil {
		err = keep(ctx, tx, r.effect, a)
	}
	return a, err
}

// Compensation makes a handler of a compensation. Its Do is called only where there is something to undo. Work that was accepted and has not been done is withdrawn, and leaves nothing
// to undo.
//
// A refusal is answered and not kept: the saga is parked, and when a person has mended the cause and has it tried again, it comes under the same key.
func (s *Service) Compensation(parse func(*Request) (Intent, error)) http.Handler {
	return s.handler(parse, func(ctx context.Context, tx pgx.Tx, r *Request, in *Intent) (idempotency.Response, error) {
		if r.effect.Name == "" {
			return encodeAnswer(in.Do(ctx, tx))
		}
		done, err := Undo(ctx, tx, r.effect)
		if err != nil {
			return idempotency.Response{}, err
		}
		if done {
			var withdrawn bool
			if withdrawn, err = Withdraw(ctx, tx, r.effect); err != nil {
				return idempotency.Response{}, err
			}
			if !withdrawn {
				return encodeAnswer(in.Do(ctx, tx))
			}
		}
		if in.Nothing != nil {
			return encodeAnswer(*in.Nothing, nil)
		}
		return encodeAnswer(Answer{Body: map[string]bool{"undone": false}}, nil)
	})
}

type carryOut func(ctx context.Context, tx pgx.Tx, r *Request, in *Intent) (idempotency.Response, error)

func (s *Service) handler(parse func(*Request) (Intent, error), do carryOut) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		r, err := s.read(w, hr)
		var in Intent
		if err == nil {
			in, err = parse(r)
		}
		if err != nil {
			s.notKept(r, err, http.StatusBadRequest).write(w)
			return
		}
		// What was begun is finished, whether or not the caller still waits for it.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(hr.Context()), s.Timeout)
		defer cancel()
		r.effect = Effect{r.Realm, in.Effect}
		a, replayed, err := s.once(context.WithValue(ctx, requestKey{}, r), r, &in, do)
		if err != nil {
			s.notKept(r, err, http.StatusInternalServerError).write(w)
			return
		}
		if replayed {
			w.Header().Set(idempotency.HeaderReplayed, "true")
		}
		answer(a).write(w)
	})
}

// once carries the request out, or answers as before.
func (s *Service) once(ctx context.Context, r *Request, in *Intent, do carryOut) (idempotency.Response, bool, error) {
	key := idempotency.Key{Realm: r.Realm, Key: r.Key}
	of := idempotency.FingerprintOf(r.http.Method, r.http.URL.RequestURI(), r.Body)
	a, replayed, err := s.keys.Once(ctx, s.db, key, of, func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
		r.again = false // what an earlier try has found may be gone
		return do(ctx, tx, r, in)
	})
	replayed = replayed || r.again
	if err == nil && replayed && a.Status == http.StatusAccepted && r.Callback != "" {
		err = s.moved(ctx, r)
	}
	return a, replayed, err
}

func (s *Service) read(w http.ResponseWriter, hr *http.Request) (*Request, error) {
	r := &Request{
		SagaID: hr.Header.Get("Saga-Id"), Step: hr.Header.Get("Saga-Step"), TraceParent: hr.Header.Get("Traceparent"), Callback: hr.Header.Get("Saga-Callback"), http: hr,
	}
	var err error
	if r.Key, err = idempotency.KeyOf(hr.Header); err != nil {
		return r, err
	}
	if r.Key == "" {
		return r, errors.New("the header " + idempotency.HeaderKey + " is missing")
	}
	if err := s.checkCallback(r.Callback); err != nil {
		return r, err
	}
	if s.Realm != nil {
		if r.Realm, err = s.Realm(hr); err != nil {
			return r, &Refusal{http.StatusUnauthorized, err.Error()}
		}
	}
	r.Body, err = io.ReadAll(http.MaxBytesReader(w, hr.Body, s.MaxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return r, &Refusal{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", s.MaxBody)}
	}
	return r, err
}

// notKept is the answer to a request of which nothing has been kept.
func (s *Service) notKept(r *Request, err error, otherwise int) answer {
	no, later := (*Refusal)(nil), (*Delay)(nil)
	switch {
	case errors.As(err, &later):
		a := plain(http.StatusTooManyRequests, later.Message) // and not 503, which says nothing of whether it has happened
		a.Header.Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(later.After.Seconds())))))
		return a
	case errors.As(err, &no):
		return plain(no.Status, no.Message)
	case errors.Is(err, idempotency.ErrMismatch):
		return plain(http.StatusUnprocessableEntity, "this "+idempotency.HeaderKey+" was used for another request")
	case errors.Is(err, idempotency.ErrInProgress):
		return plain(http.StatusTooEarly, "a request with this key is being carried out") // and not 409, which would be a definite no
	case otherwise == http.StatusBadRequest:
		return plain(otherwise, err.Error())
	}
	// 500 and not 503: whether the transaction has committed may not be known.
	s.Logger.Error("what a saga asked for has failed; it is tried again under the same key", "key", r.Key, "effect", r.effect.String(), "error", err)
	return plain(otherwise, "something went wrong; try again with the same key")
}

// answer is a response that can be sent.
type answer idempotency.Response

type message struct {
	Message string `json:"message"`
}

func plain(status int, text string) answer {
	a, err := encode(status, message{text})
	if err != nil {
		panic(err) // there is nothing in it that could not be encoded
	}
	return answer(a)
}

func encode(status int, body any) (idempotency.Response, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return idempotency.Response{}, fmt.Errorf("encoding the answer: %w", err)
	}
	return response(status, append(data, '\n')), nil
}

// encodeAnswer is what a Do has come to.
func encodeAnswer(a Answer, err error) (idempotency.Response, error) {
	if err != nil {
		return idempotency.Response{}, err
	}
	if a.Status == 0 {
		a.Status = http.StatusOK
	}
	return encode(a.Status, a.Body)
}

func response(status int, body []byte) idempotency.Response {
	return idempotency.Response{Status: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: body}
}

func (a answer) write(w http.ResponseWriter) {
	for name, values := range a.Header {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(a.Body)))
	w.WriteHeader(a.Status)
	_, _ = w.Write(a.Body) // whoever is gone asks again
}
