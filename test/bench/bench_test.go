package main

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// TestMeasuringOnAServerThatTheUserNamesLeavesItAsItWas runs the group that is done soonest.
func TestMeasuringOnAServerThatTheUserNamesLeavesItAsItWas(t *testing.T) {
	own := throwaway.NewServer(t, throwaway.Options{Own: true})
	t.Setenv("DATABASE_URL", own.URL())
	before := databases(t, own)
	if _, err := measureIdempotency(t.Context(), settings{clients: 2, samples: 1}); err != nil {
		t.Error(err)
	}
	if after := databases(t, own); after != before {
		t.Errorf("there were %d databases, and are %d", before, after)
	}
}

func databases(t *testing.T, s *throwaway.Server) (n int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.SuperuserURL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_database").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
