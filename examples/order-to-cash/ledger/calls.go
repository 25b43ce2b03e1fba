package ledger

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Call is what one service saw of one idempotency key.
type Call struct {
	Service, Key string
	// Effect is what was to happen, and to which order: "capture 1042".
	Effect string
	// Deliveries is how often a request came. Of these at most one may have acted, done nothing (it undid what was not there) or been
	// refused; the others were turned away, broke off, or got the stored answer.
	Deliveries, Acted, Nothing, Refused int64
}

const callsSQL = `
SELECT 'orders', key, effect, deliveries, effects, nothing, refused FROM orders.calls_by_key
UNION ALL SELECT 'inventory', key, effect, deliveries, effects, nothing, refused FROM inventory.calls_by_key
UNION ALL SELECT 'payments', key, effect, deliveries, effects, nothing, refused FROM payments.calls_by_key
UNION ALL SELECT 'shipping', key, effect, deliveries, effects, nothing, refused FROM shipping.calls_by_key
UNION ALL SELECT 'invoicing', key, effect, deliveries, effects, nothing, refused FROM invoicing.calls_by_key
ORDER BY 1, 3, 2`

// Calls reads what all services saw, in one snapshot.
func Calls(ctx context.Context, pool *pgxpool.Pool) ([]Call, error) {
	rows, err := pool.Query(ctx, callsSQL)
	if err != nil {
		return nil, fmt.Errorf("reading the calls: %w", err)
	}
	calls, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Call])
	if err != nil {
		return nil, fmt.Errorf("reading the calls: %w", err)
	}
	return calls, nil
}

// CheckCalls lists what must not be: an effect that came under two keys, a key that stands for two effects, a key that had its effect
// twice, or an effect that nobody asked for.
func CheckCalls(calls []Call) []string {
	var problems []string
	type at struct{ service, name string }
	keys, effects := map[at]string{}, map[at]string{}
	for _, c := range calls {
		if other, ok := keys[at{c.Service, c.Effect}]; ok && other != c.Key {
			problems = append(problems, fmt.Sprintf("%s: %s came under two keys: %s and %s", c.Service, c.Effect, other, c.Key))
		}
		if other, ok := effects[at{c.Service, c.Key}]; ok && other != c.Effect {
			problems = append(problems, fmt.Sprintf("%s: the key %s stands for two effects: %s and %s", c.Service, c.Key, other, c.Effect))
		}
		keys[at{c.Service, c.Effect}], effects[at{c.Service, c.Key}] = c.Key, c.Effect
		if n := c.Acted + c.Nothing + c.Refused; n > 1 {
			problems = append(problems, fmt.Sprintf("%s: %s was decided %d times under the key %s", c.Service, c.Effect, n, c.Key))
		}
		if c.Deliveries == 0 {
			problems = append(problems, fmt.Sprintf("%s: %s happened under the key %s, which was never delivered", c.Service, c.Effect, c.Key))
		}
	}
	return problems
}
