package memory_test

import (
	"testing"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/eventstore/storetest"
)

func TestTheMemoryStoreConforms(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(testing.TB) eventstore.Store { return memory.New() })
}
