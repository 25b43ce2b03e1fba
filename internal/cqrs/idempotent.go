package cqrs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// Keyed is a command that names the one effect that it is to have. The realm keeps tenants apart: the same key in two realms is two keys. A command without a key is not protected.
type Keyed interface {
	IdempotencyKey() (realm, key string)
}

// IdempotencyStore is what Idempotent needs of an idempotency.Store.
type IdempotencyStore interface {
	Begin(ctx context.Context, k idempotency.Key, f idempotency.Fingerprint) (idempotency.Begun, error)
	Complete(ctx context.Context, c idempotency.Claim, r idempotency.Response) error
	Fail(ctx context.Context, c idempotency.Claim, r idempotency.Response) error
	Release(ctx context.Context, c idempotency.Claim) error
}

// keepTimeout bounds keeping an answer. It is not the caller's time: who gives up has had its effect all the same.
const keepTimeout = 5 * time.Second

// What a kept answer's status is; there is no HTTP here.
const (
	statusAnswered = 200
	statusRefused  = 422
)

// Idempotent carries a Keyed command out once, however often it is sent, and repeats its answer. Answers are kept as JSON, and so are refusals (*RefusedError). After any other
// error the key is free, and the command can be sent again: a handler whose append may have been committed all the same has to find that out then, as it does by deriving the events' ids.
//
// While the command is carried out, the same key fails with *idempotency.InProgressError; with another command, one of another type or with other JSON, it fails with
// idempotency.ErrMismatch. Where a process dies in the middle, or a handler takes longer than the store's lease, the handler runs again: what it does outside of the database needs keys of
// its own, derived from this one.
func Idempotent(store IdempotencyStore) Middleware {
	return func(next Handler) Handler {
		return func(ctx context.Context, m Message) (any, error) {
			keyed, ok := m.Value.(Keyed)
			switch {
			case !ok:
				return next(ctx, m)
			case m.decode == nil:
				return nil, fmt.Errorf("%s %s: middleware outside of Idempotent has made a message of its own; it has to hand on the one that it got", m.Kind, m.Name)
			}
			var key idempotency.Key
			if key.Realm, key.Key = keyed.IdempotencyKey(); key.Key == "" {
				return next(ctx, m)
			}
			data, err := json.Marshal(m.Value)
			if err != nil {
				return nil, fmt.Errorf("%s %s: encoding it, to tell it from others of key %s: %w", m.Kind, m.Name, key, err)
			}
			begun, err := store.Begin(ctx, key, idempotency.FingerprintOf(string(m.Kind), m.Name, data))
			if err != nil {
				return nil, fmt.Errorf("%s %s with key %s: %w", m.Kind, m.Name, key, err)
			}
			if begun.Response != nil {
				return replay(m, begun.Response)
			}
			return once(ctx, store, *begun.Claim, next, m)
		}
	}
}

// once runs the handler of a claimed key and keeps what it says. A panic goes on after the key has been freed.
func once(ctx context.Context, store IdempotencyStore, claim idempotency.Claim, next Handler, m Message) (answer any, err error) {
	settled := false
	defer func() {
		if !settled {
			err = errors.Join(err, release(ctx, store, claim))
		}
	}()
	answer, err = next(ctx, m)
	var refused *RefusedError
	if err != nil && !errors.As(err, &refused) {
		return nil, err
	}
	settled = true
	if err := keep(ctx, store, claim, answer, refused); err != nil {
		return nil, fmt.Errorf("%s %s with key %s was carried out, but its answer could not be kept; send it again: %w", m.Kind, m.Name, claim.Key, err)
	}
	return answer, err
}

// keep stores an answer or a refusal.
func keep(ctx context.Context, store IdempotencyStore, claim idempotency.Claim, answer any, refused *RefusedError) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTimeout)
	defer cancel()
	r, kept, write := idempotency.Response{Status: statusAnswered}, answer, store.Complete
	if refused != nil {
		r.Status, kept, write = statusRefused, refused, store.Fail
	}
	var err error
	if r.Body, err = json.Marshal(kept); err != nil {
		return fmt.Errorf("encoding it: %w", err) // the key stays claimed for its lease: the effect is there
	}
	return write(ctx, claim, r)
}

func release(ctx context.Context, store IdempotencyStore, claim idempotency.Claim) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTimeout)
	defer cancel()
	if err := store.Release(ctx, claim); err != nil && !errors.Is(err, idempotency.ErrFenced) {
		return fmt.Errorf("freeing key %s, which is free when its lease is over: %w", claim.Key, err)
	}
	return nil
}

// replay says again what was kept.
func replay(m Message, r *idempotency.Response) (any, error) {
	if r.Status == statusRefused {
		var refused RefusedError
		if err := json.Unmarshal(r.Body, &refused); err != nil {
			return nil, fmt.Errorf("%s %s: reading its kept refusal: %w", m.Kind, m.Name, err)
		}
		return nil, &refused
	}
	answer, err := m.decode(r.Body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: reading its kept answer: %w", m.Kind, m.Name, err)
	}
	return answer, nil
}
