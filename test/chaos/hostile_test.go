package chaos

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

const hangs = "hangs"

// hostile is a participant that misbehaves, by path.
type hostile struct {
	*httptest.Server
	hung sync.Map // the names of the sagas that it has kept waiting
}

func newHostile(t *testing.T) *hostile {
	t.Helper()
	h := &hostile{}
	var zipped bytes.Buffer // a MiB; a file of gzip may have many of them
	z := gzip.NewWriter(&zipped)
	if _, err := io.CopyN(z, zeros{}, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	bomb := bytes.Repeat(zipped.Bytes(), 256)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /"+hangs, func(_ http.ResponseWriter, r *http.Request) {
		h.hung.Store(r.URL.RawQuery, true)
		<-r.Context().Done()
	})
	mux.HandleFunc("POST /breaks-off", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, `{"half":`)
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("POST /floods", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.CopyN(w, zeros{}, 1<<30) })
	mux.HandleFunc("POST /bombs", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(bomb)
	})
	mux.HandleFunc("POST /babbles", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "\x00\xff{not json") })
	mux.HandleFunc("POST /redirects", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://169.254.169.254/latest/meta-data", http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("DELETE /", func(http.ResponseWriter, *http.Request) {})
	h.Server = httptest.NewServer(mux)
	t.Cleanup(h.Close)
	return h
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestParticipantsThatMisbehaveGetTheRightOutcomeAndLittleMemory also runs a saga that has nothing to do with them.
func TestParticipantsThatMisbehaveGetTheRightOutcomeAndLittleMemory(t *testing.T) {
	s := newScene(t, throwaway.Database(t))
	op, bad := s.operator(), newHostile(t)
	// Unknown outcomes are compensated, a definite no is not.
	for path, undone := range map[string]bool{hangs: true, "breaks-off": true, "floods": true, "bombs": true, "redirects": false} {
		patience := patience
		switch path {
		case hangs:
			patience = 2 * time.Second // nothing else ends it
		case "breaks-off":
			patience = 5 * time.Second // its undo waits until the call would be over
		}
		for _, name := range names(path, 5) {
			s.applyTo(name, bad.URL+"/"+path+"?"+name, patience)
		}
		s.ended(v1.PhaseCompensated, names(path, 5)...)
		for _, name := range names(path, 5) {
			if _, asked := bad.hung.Load(name); path == hangs && !asked {
				continue // its time was over before it got there: nothing was sent, so that there may be nothing to undo
			}
			if got := s.get(name).Status.Steps[0].CompensationAttempts > 0; got != undone {
				t.Errorf("%s: compensated %t, want %t: %s", name, got, undone, s.get(name).Status.Steps[0].Message)
			}
		}
	}
	s.applyTo("babbles", bad.URL+"/babbles", patience)
	s.apply("order")
	s.ended(v1.PhaseCompleted, "babbles", "order")
	if mib := memory(t, op.PID()); mib > 200 {
		t.Errorf("the operator used up to %d MiB", mib)
	}
	if !op.Running() {
		t.Error("the operator ended")
	}
}

// applyTo creates a saga of one step that is tried once, for so long.
func (s *scene) applyTo(name, url string, timeout time.Duration) {
	s.t.Helper()
	saga := &v1.Saga{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name}}
	saga.Spec.Steps = []v1.Step{{
		Name:         "only",
		Effect:       v1.Effect{HTTP: &v1.HTTPRequest{Method: "POST", URL: url}, Retry: &v1.Retry{MaxAttempts: 1}, AttemptTimeout: &metav1.Duration{Duration: timeout}},
		Compensation: &v1.Effect{HTTP: &v1.HTTPRequest{Method: "DELETE", URL: url}},
	}}
	if err := k8s.Create(s.t.Context(), saga); err != nil {
		s.t.Fatal(err)
	}
}
