package operations

import (
	"context"
	"io"
	"net/http"
)

type memoryKey struct{}

// WithMemory returns a context that is asked for memory, in bytes, before something large is read for it. take fails with budget.ErrNone where
// there is none.
func WithMemory(ctx context.Context, take func(bytes int64) error) context.Context {
	return context.WithValue(ctx, memoryKey{}, take)
}

func takeMemory(ctx context.Context, bytes int64) error {
	if take, ok := ctx.Value(memoryKey{}).(func(int64) error); ok {
		return take(bytes)
	}
	return nil
}

// answerCopies is how often an answer of the API server is there at once: as it came, decoded, and encoded anew for whoever asked.
const answerCopies = 5

// weighing is a transport that asks for the memory of answers while they come.
type weighing struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t weighing) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(req)
	if err == nil {
		resp.Body = &weighed{ReadCloser: resp.Body, ctx: req.Context()}
	}
	return resp, err
}

// weighed is the body of an answer.
type weighed struct {
	io.ReadCloser
	ctx context.Context
}

// Read implements io.Reader.
func (w *weighed) Read(b []byte) (int, error) {
	n, err := w.ReadCloser.Read(b)
	if n > 0 {
		if err := takeMemory(w.ctx, answerCopies*int64(n)); err != nil {
			return 0, err
		}
	}
	return n, err
}
