package ports

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestMain is also the other process: it takes the port that it is told, says how that went, and waits until it is killed.
func TestMain(m *testing.M) {
	text := os.Getenv("PORTS_TEST_TAKE")
	if text == "" {
		os.Exit(m.Run())
	}
	number, err := strconv.Atoi(text)
	if err == nil {
		_, err = Take(context.Background(), number)
	}
	fmt.Fprintln(os.Stdout, err == nil)
	select {}
}

func TestAPortIsDrawnFromOutsideTheRangeInWhichTheKernelPicks(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		says     string
		err      error
		from, to int
	}{
		{"32768\t60999\n", nil, 10_000, 32_767},
		{"10000\t50000\n", nil, 50_001, 65_535},
		{"1024\t4999\n", nil, 10_000, 65_535},
		{"1024\t65535\n", nil, 10_000, 65_535},
		{"", os.ErrNotExist, 10_000, 32_767},
		{"nonsense", nil, 10_000, 32_767},
	} {
		if from, to := outside([]byte(c.says), c.err); from != c.from || to != c.to {
			t.Errorf("%q: from %d to %d, want from %d to %d", c.says, from, to, c.from, c.to)
		}
	}
	p, err := Draw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	if from, to := outside(os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")); p.Number < from || p.Number > to {
		t.Errorf("port %d is not from %d to %d", p.Number, from, to)
	}
}

func TestAPortIsDrawnOnceUntilItIsReleased(t *testing.T) {
	t.Parallel()
	p, err := Draw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := draw(t.Context(), p.Number, p.Number); err == nil {
		t.Errorf("port %d was drawn twice", again.Number)
	}
	// The server that it is for may come and go.
	for range 2 {
		l, err := net.Listen("tcp", p.Address())
		if err != nil {
			t.Fatalf("who has drawn the port cannot listen at it: %v", err)
		}
		_ = l.Close()
	}
	p.Release()
	p.Release()
	if err := p.held.SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the port was released, and is still held: %v", err)
	}
}

func TestAPortAtWhichSomebodyListensIsNotDrawn(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0"} {
		l, err := net.Listen("tcp4", address)
		if err != nil {
			t.Fatal(err)
		}
		taken := l.Addr().(*net.TCPAddr).Port
		if _, err := Take(t.Context(), taken); err == nil || !strings.Contains(err.Error(), strconv.Itoa(taken)) {
			t.Errorf("%s: %v, want an error that names the port", address, err)
		}
		_ = l.Close()
	}
}

func TestAnotherProcessDrawsAPortOnlyAfterItsHolderHasDied(t *testing.T) {
	t.Parallel()
	p, err := Draw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	if said, _ := other(t, p.Number); said != "false" {
		t.Errorf("another process took the port: %s", said)
	}
	// A port that is free may be drawn by anybody on this machine: then the next one is tried, and one after the other would not be had by chance.
	for range 20 {
		if err = holderDies(t); err == nil {
			return
		}
	}
	t.Error(err)
}

// holderDies has another process take a port, looks that nobody can take it, kills the process, and takes the port.
func holderDies(t *testing.T) error {
	t.Helper()
	p, err := Draw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p.Release()
	said, end := other(t, p.Number)
	if said != "true" {
		return fmt.Errorf("another process could not take the port after its release: %s", said)
	}
	if _, err := Take(t.Context(), p.Number); err == nil {
		t.Fatal("the port of another process was taken")
	}
	end()
	taken, err := Take(t.Context(), p.Number)
	if err != nil {
		return fmt.Errorf("the holder was killed, and its port cannot be taken: %w", err)
	}
	taken.Release()
	return nil
}

// other has another process take a port, and returns what it said and how to kill it.
func other(t *testing.T, number int) (said string, end func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "PORTS_TEST_TAKE="+strconv.Itoa(number))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		var exit *exec.ExitError
		_ = cmd.Process.Kill()
		if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line), end
}
