package participant

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// checkCallback says what is wrong with where a request wants to be answered. What is called is the URL itself, so it is compared as a URL, and not as a text.
func (s *Service) checkCallback(callback string) error {
	if callback == "" || len(s.Operators) == 0 {
		return nil
	}
	at, err := url.Parse(callback)
	if err == nil && at.User == nil {
		for _, operator := range s.Operators {
			base, err := url.Parse(operator)
			if err == nil && base.Scheme == at.Scheme && base.Host == at.Host && strings.HasPrefix(at.Path, strings.TrimSuffix(base.Path, "/")+"/") {
				return nil
			}
		}
	}
	return errors.New("the header Saga-Callback leads to nobody whom this service calls back")
}

// telling is an outcome that somebody is to be told.
type telling struct {
	effect   Effect
	key      string
	callback string
	outcome  []byte
	attempts int
}

const (
	tellings    = 8                // at once
	postTimeout = 30 * time.Second // also for a client without one of its own
	claimed     = time.Minute      // longer than a post takes: after a crash another one tells it then
)

// tellAll tells what is due until ctx is done, a few at once, and waits for them.
func (s *Service) tellAll(ctx context.Context) {
	var under sync.WaitGroup
	defer under.Wait()
	slots := make(chan struct{}, tellings)
	s.repeat(ctx, func() (bool, error) {
		select { // before anything is claimed: a claim does not wait
		case slots <- struct{}{}:
		case <-ctx.Done():
			return false, nil
		}
		t, err := s.claim(ctx)
		if t == nil {
			<-slots
			return false, err
		}
		under.Go(func() {
			defer func() { <-slots }()
			if err := s.tell(ctx, t); err != nil {
				s.Logger.Warn("what became of a callback could not be noted; it is made again", "effect", t.effect.String(), "error", err)
			}
		})
		return true, nil
	})
}

// claim takes an outcome that is due, if there is one.
func (s *Service) claim(ctx context.Context) (*telling, error) {
	var t telling
	err := s.db.QueryRow(ctx, `UPDATE saga_work SET due_at = now() + $1::interval WHERE (realm, key) IN (
			SELECT realm, key FROM saga_work WHERE ended IS NULL AND outcome IS NOT NULL AND due_at <= now() ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED)
		RETURNING realm, effect, key, callback, outcome, attempts`, claimed).Scan(&t.effect.Realm, &t.effect.Name, &t.key, &t.callback, &t.outcome, &t.attempts)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for outcomes to be told: %w", explain(err))
	}
	return &t, nil
}

// tell tells an outcome, and notes whether that has to be done again.
func (s *Service) tell(ctx context.Context, t *telling) error {
	status, err := s.post(ctx, t)
	switch {
	case errors.Is(err, errOver):
		s.Logger.Warn("a callback was not taken", "effect", t.effect.String(), "error", err)
		return s.told(ctx, t, "refused")
	case err == nil && status >= 200 && status < 300:
		return s.told(ctx, t, "told")
	case err == nil:
		err = fmt.Errorf("it was answered with status %d", status)
	}
	s.Logger.Info("a callback did not go through; it is tried again", "effect", t.effect.String(), "attempts", t.attempts+1, "error", err)
	return s.putOff(ctx, t.effect.Realm, t.key, t.attempts)
}

// errOver says that to tell it again would change nothing.
var errOver = errors.New("nobody waits for it")

// over says whether the operator has answered that it no longer waits, that another answer counts, or that it never gave the URL out. Anything else may come from what is between: an ingress that is
// being rolled out answers 404 too, and says nothing of the callback.
func over(resp *http.Response) bool {
	switch resp.StatusCode {
	case http.StatusConflict, http.StatusGone:
		return true
	case http.StatusNotFound:
		kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
		return err == nil && kind == "application/problem+json"
	}
	return false
}

// told notes that an outcome was told, unless the operator has asked for it elsewhere meanwhile.
func (s *Service) told(ctx context.Context, t *telling, ended string) error {
	ctx = context.WithoutCancel(ctx)
	_, err := s.db.Exec(ctx, `UPDATE saga_work SET ended = CASE WHEN callback = $3 THEN $4 END, due_at = now(), attempts = 0 WHERE realm = $1 AND key = $2 AND ended IS NULL`,
		t.effect.Realm, t.key, t.callback, ended)
	if err != nil {
		return fmt.Errorf("noting that the outcome of effect %s was told: %w", t.effect, err)
	}
	return nil
}

// post calls the callback and returns the status of its answer. Errors do not repeat the URL, which is a secret.
func (s *Service) post(ctx context.Context, t *telling) (int, error) {
	const enough = 4 << 10
	ctx, cancel := context.WithTimeout(ctx, postTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.callback, bytes.NewReader(t.outcome))
	if err != nil {
		return 0, fmt.Errorf("%w: it is no URL", errOver) // and never becomes one
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.Client.Do(req)
	if err != nil {
		if cause := errors.Unwrap(err); cause != nil {
			err = cause
		}
		return 0, err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, enough) // so that the connection can be used again
	if over(resp) {
		return resp.StatusCode, fmt.Errorf("%w: it was answered with status %d", errOver, resp.StatusCode)
	}
	return resp.StatusCode, nil
}
