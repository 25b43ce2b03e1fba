package sagas_test

import (
	"testing"

	"github.com/vextrus/saga-operator/internal/projection"
	"github.com/vextrus/saga-operator/internal/projection/sagas"
	"github.com/vextrus/saga-operator/internal/saga"
)

func TestTheReadModelsKnowEveryTypeOfEvent(t *testing.T) {
	t.Parallel()
	for _, d := range []*projection.Definition{sagas.History(), sagas.Summary()} {
		for _, typ := range saga.EventTypes() {
			if !d.Knows(typ) {
				t.Errorf("%s does not know %s and would stop at it", d.Name(), typ)
			}
		}
	}
}
