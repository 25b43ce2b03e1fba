package operations

import (
	"context"
	"io"
	"net/http"
)

type memoryKey struct{}

// WithMemory returns a context whose operations call take with a number of bytes before they hold
// that much memory. take fails with budget.ErrExhausted if the memory is not available, and the
// operation fails with that error. Without WithMemory, memory is not limited.
func WithMemory(ctx context.Context, take func(bytes int64) error) context.Context {
	return context.WithValue(ctx, memoryKey{}, take)
}

// takeMemory takes memory, in bytes, from the context of [WithMemory]. Without one it does nothing.
func takeMemory(ctx context.Context, bytes int64) error {
	if take, ok := ctx.Value(memoryKey{}).(func(int64) error); ok {
		return take(bytes)
	}
	return nil
}

// responseCopies is how many times the memory of a response of the API server is taken. The
// response is held as received, decoded, and encoded again for the client.
const responseCopies = 5

// meteredTransport takes memory for each response while its body is read.
type meteredTransport struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t meteredTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(req)
	if err == nil {
		resp.Body = &meteredBody{ReadCloser: resp.Body, ctx: req.Context()}
	}
	return resp, err
}

// meteredBody is the body of a response. It takes memory from the context of the request.
type meteredBody struct {
	io.ReadCloser
	ctx context.Context
}

// Read implements io.Reader. It fails with the error of [WithMemory]'s take.
func (m *meteredBody) Read(b []byte) (int, error) {
	n, err := m.ReadCloser.Read(b)
	if n > 0 {
		if err := takeMemory(m.ctx, responseCopies*int64(n)); err != nil {
			return 0, err
		}
	}
	return n, err
}
