package memory_test

import (
	"testing"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
	"github.com/vextrus/saga-operator/internal/outbox/sink/sinktest"
)

func TestTheMemorySinkConforms(t *testing.T) {
	t.Parallel()
	sinktest.Run(t, func(*testing.T) *sinktest.Harness {
		var p *memory.Publisher
		mode := outbox.Binary
		return &sinktest.Harness{
			Local: true,
			New: func(_ *testing.T, w sinktest.With) outbox.Publisher {
				p = &memory.Publisher{}
				if w.Mode != "" {
					mode = w.Mode
				}
				return p
			},
			Received: func(t *testing.T) (all []sinktest.Got) {
				if p == nil {
					return nil
				}
				for _, m := range p.Taken() {
					e, err := m.Encode(mode, "ce-")
					if err != nil {
						t.Fatal(err)
					}
					all = append(all, sinktest.Got{Key: m.Key, ID: m.ID.String(), Incoming: e.Incoming()})
				}
				return all
			},
		}
	})
}
