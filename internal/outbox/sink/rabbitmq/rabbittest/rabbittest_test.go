package rabbittest_test

import (
	"bufio"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/vextrus/saga-operator/internal/outbox/sink/rabbitmq/rabbittest"
)

// TestMain is also the owner that gets killed: it starts a server, says where, and waits.
func TestMain(m *testing.M) {
	if os.Getenv("RABBITTEST_OWNER") == "" {
		os.Exit(rabbittest.Main(m))
	}
	s, err := rabbittest.Start(context.Background())
	if err != nil {
		panic(err)
	}
	os.Stdout.WriteString(filepath.Dir(s.LogFile()) + " " + s.Address() + "\n")
	select {}
}

func TestAServerEndsWithTheProcessThatStartedItHoweverThatEnds(t *testing.T) {
	t.Parallel()
	rabbittest.Shared(t) // skips where there is none
	owner := exec.Command(os.Args[0])
	owner.Env = append(os.Environ(), "RABBITTEST_OWNER=1")
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	dir, address, _ := strings.Cut(strings.TrimSpace(line), " ")
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	eventually(t, "nothing mentions the directory any more", func() bool {
		return exec.Command("pgrep", "-f", dir+"/").Run() != nil
	})
	eventually(t, "the directory is gone", func() bool {
		_, err := os.Stat(dir)
		return os.IsNotExist(err)
	})
	eventually(t, "the server answers no more", func() bool { // a process that ends has no command line any more before it gives up its sockets
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); !holds(); time.Sleep(50 * time.Millisecond) { //nolint:forbidigo // the pause between two looks
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestAStoppedServerComesBackWithItsDataOnTheSamePort(t *testing.T) {
	t.Parallel()
	s := rabbittest.NewServer(t)
	address := s.Address()
	if _, err := s.Channel(t).QueueDeclare("kept", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if conn, err := s.Connect(); err == nil {
		_ = conn.Close()
		t.Fatal("the stopped server answers")
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.Address() != address {
		t.Errorf("the server was at %s and is at %s", address, s.Address())
	}
	if _, err := s.Channel(t).QueueDeclarePassive("kept", true, false, false, false, nil); err != nil {
		t.Errorf("the queue is gone: %v", err)
	}
}

func TestAServerTakesCommands(t *testing.T) {
	t.Parallel()
	s := rabbittest.Shared(t)
	somebody := uuid.NewString()
	if err := s.Control(t.Context(), "add_user", somebody, "something"); err != nil {
		t.Fatal(err)
	}
	if err := s.Control(t.Context(), "set_permissions", somebody, ".*", ".*", ".*"); err != nil {
		t.Fatal(err)
	}
	conn, err := amqp.DialConfig(s.URL(), amqp.Config{
		SASL: []amqp.Authentication{&amqp.PlainAuth{Username: somebody, Password: "something"}}, Vhost: "/", Dial: amqp.DefaultDial(5 * time.Minute),
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}

func TestAClosedServerLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	s := rabbittest.NewServer(t)
	dir := filepath.Dir(s.LogFile())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there (%v)", dir, err)
	}
	if conn, err := s.Connect(); err == nil {
		_ = conn.Close()
		t.Error("the closed server answers")
	}
}
