package orders

import "github.com/vextrus/saga-operator/internal/aggregate"

// Kind is what a repository needs.
func Kind() aggregate.Kind[*Order, State] { return kind }
