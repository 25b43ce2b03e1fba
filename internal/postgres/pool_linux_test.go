package postgres_test

import (
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/postgres"
)

// TestPoolProbesServersThatMayHaveVanished asks the kernel: a machine that vanishes closes no
// connection, and to wait for its probes would take the test as long.
func TestPoolProbesServersThatMayHaveVanished(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pool := open(t, postgres.Config{URL: "postgres://saga@" + l.Addr().String() + "/saga?sslmode=disable"})
	conn, err := pool.Config().ConnConfig.DialFunc(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	option := func(level, name int) (value int) {
		t.Helper()
		var failed error
		if err := raw.Control(func(fd uintptr) { value, failed = syscall.GetsockoptInt(int(fd), level, name) }); err != nil || failed != nil {
			t.Fatal(err, failed)
		}
		return value
	}
	probes := option(syscall.SOL_SOCKET, syscall.SO_KEEPALIVE)
	idle, interval, count := option(syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE), option(syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL), option(syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT)
	if over := time.Duration(idle+interval*count) * time.Second; probes == 0 || over > 30*time.Second {
		t.Errorf("probes: %d; a connection to a server that has vanished ends after %s, want at most 30s", probes, over)
	}
}
