package effect

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/vextrus/saga-operator/pkg/participant"
)

const (
	maxDelay = time.Minute
	maxHang  = time.Minute
)

// Faults are what a service does wrong on purpose, so that others can show that they cope. The zero value is none. Only effects suffer
// from them.
type Faults struct {
	// Delay is a pause before each effect, as in "200ms"; at most a minute.
	Delay Duration `json:"delay,omitzero"`
	// Error is the fraction of requests, 0 to 1, that are answered with 500 and have no effect.
	Error float64 `json:"error,omitempty"`
	// Hang is the fraction of requests, 0 to 1, that have no effect and no answer: the connection is closed after a minute.
	Hang float64 `json:"hang,omitempty"`
	// Lose is the fraction of requests, 0 to 1, that have their effect, and then the connection is closed instead of an answer.
	Lose float64 `json:"lose,omitempty"`
	// Requests is after how many requests the faults end; zero is when they are replaced.
	Requests int `json:"requests,omitempty"`
}

// Duration is a time.Duration that JSON writes as "1.5s".
type Duration time.Duration

// MarshalText writes the duration.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads the duration.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = Duration(parsed)
	return err
}

func (f Faults) check() error {
	if d := time.Duration(f.Delay); d < 0 || d > maxDelay {
		return fmt.Errorf("delay: %s is not between 0s and %s", d, maxDelay)
	}
	for name, rate := range map[string]float64{"error": f.Error, "hang": f.Hang, "lose": f.Lose} {
		if !(rate >= 0 && rate <= 1) { // also for NaN
			return fmt.Errorf("%s: %v is not between 0 and 1", name, rate)
		}
	}
	if f.Requests < 0 {
		return fmt.Errorf("requests: %d is negative", f.Requests)
	}
	return nil
}

type faults struct {
	mu  sync.Mutex
	now Faults
}

func (f *faults) get() Faults {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *faults) set(to Faults) error {
	if err := to.check(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = to
	return nil
}

// draw decides what happens to one request.
func (f *faults) draw() fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	drawn := fault{
		delay: time.Duration(f.now.Delay),
		err:   rand.Float64() < f.now.Error,
		hang:  rand.Float64() < f.now.Hang,
		lose:  rand.Float64() < f.now.Lose,
	}
	if f.now.Requests > 0 {
		if f.now.Requests--; f.now.Requests == 0 {
			f.now = Faults{}
		}
	}
	return drawn
}

// fault is what happens to one request.
type fault struct {
	delay           time.Duration
	err, hang, lose bool
}

// before does what is to be done wrong before the effect. After an error there is none.
func (f fault) before(r *http.Request) error {
	pause(r, f.delay)
	if f.hang {
		pause(r, maxHang)
		panic(http.ErrAbortHandler) // closes the connection without an answer
	}
	if f.err {
		return participant.Refuse(http.StatusInternalServerError, "a fault was asked for")
	}
	return nil
}

// pause gives the request up when the caller is gone or the server stops.
func pause(r *http.Request, d time.Duration) {
	if d == 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
		panic(http.ErrAbortHandler)
	}
}

func (s *Service) postFaults(w http.ResponseWriter, r *http.Request) {
	var f Faults
	err := DecodeBody(w, r, &f)
	if err == nil {
		err = s.faults.set(f)
	}
	if err != nil {
		WriteMessage(w, http.StatusBadRequest, err.Error())
		return
	}
	Write(w, http.StatusOK, f)
}
