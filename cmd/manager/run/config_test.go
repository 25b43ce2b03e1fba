package run

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

const databaseURL = "postgres://saga:hunter2@db.example:5432/saga"

func environ(vars ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i+1 < len(vars); i += 2 {
			if vars[i] == name {
				return vars[i+1], true
			}
		}
		return "", false
	}
}

func TestAFlagWinsOverItsVariableAndThatOverTheDefault(t *testing.T) {
	t.Parallel()
	env := environ("DATABASE_URL", databaseURL, "SAGA_WORKERS", "7", "SAGA_CONCURRENT_RECONCILES", "8", "SAGA_MIGRATE", "false", "SAGA_LOG_LEVEL", "debug",
		"SAGA_NAMESPACES", "shop, billing", "SAGA_EGRESS_ALLOW", "10.0.0.0/8")
	c, err := Parse([]string{"--workers=9", "--log-format", "text"}, env, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if c.Workers != 9 || c.Concurrency != 8 || c.Migrate || c.LogLevel != slog.LevelDebug || c.LogFormat != "text" {
		t.Errorf("settings %+v", c)
	}
	if c.ShutdownGrace != 20*time.Second || c.HealthAddress != ":8081" || !c.LeaderElect {
		t.Errorf("defaults %+v", c)
	}
	if string(c.DatabaseURL) != databaseURL {
		t.Errorf("the database URL is not what the variable says")
	}
	if !c.watches("billing") || c.watches("other") || len(c.EgressAllow) != 1 {
		t.Errorf("lists: namespaces %v, egress %v", c.Namespaces, c.EgressAllow)
	}
}

func TestAWrongSettingIsNamed(t *testing.T) {
	t.Parallel()
	db := []string{"DATABASE_URL", databaseURL}
	for _, c := range []struct {
		args, env []string
		want      string
	}{
		{nil, nil, "DATABASE_URL"},
		{[]string{"--workers=x"}, db, "workers"},
		{nil, append([]string{"SAGA_WORKERS", "x"}, db...), "SAGA_WORKERS"},
		{[]string{"--workers=0"}, db, "--workers"},
		{[]string{"--callback-url=saga.example"}, db, "--callback-url"},
		{[]string{"--callback-url=https://x/?a=b"}, db, "--callback-url"},
		{[]string{"--max-answer-bytes=100000000"}, db, "--max-answer-bytes"},
		{[]string{"--saga-memory-bytes=1000000"}, db, "--saga-memory-bytes"},
		{[]string{"--max-attempt-timeout=29s"}, db, "--max-attempt-timeout"},
		{[]string{"--min-backoff=2s"}, db, "--min-backoff"},
		{[]string{"--max-unfinished-sagas=-2"}, db, "--max-unfinished-sagas"},
		{[]string{"--max-unfinished-bytes=-2"}, db, "--max-unfinished-bytes"},
		{[]string{"--max-sinks=-2"}, db, "--max-sinks"},
		{[]string{"--max-attempts-per-second=0"}, db, "--max-attempts-per-second"},
		{[]string{"--log-format=xml"}, db, "--log-format"},
		{[]string{"--egress-deny=nonsense"}, db, "nonsense"},
		{[]string{"--egress-allow=shop.example"}, db, "shop.example"},
		{[]string{"--lease-duration=1s"}, db, "--lease-duration"},
		{[]string{"--no-such-flag"}, db, "no-such-flag"},
		{[]string{"surplus"}, db, "surplus"},
	} {
		_, err := Parse(c.args, environ(c.env...), t.Output())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Parse(%q) with %q: error %v, want one that names %s", c.args, c.env, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

func TestTheDatabaseURLIsShownNowhere(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	c, err := Parse([]string{"--database-url", databaseURL}, environ(), &out)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&out, "%v %+v %#v %s %q", c, c, c, c.DatabaseURL, c.DatabaseURL)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("settings", "config", c, "url", c.DatabaseURL)
	slog.New(slog.NewTextHandler(&out, nil)).Info("settings", "config", c, "url", c.DatabaseURL)
	if err := json.NewEncoder(&out).Encode(c); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "hunter2") || !strings.Contains(out.String(), redacted) {
		t.Errorf("the settings show the password: %s", out.String())
	}
}

func TestHelpNamesEveryVariableAndNoSecret(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if _, err := Parse([]string{"--help"}, environ("DATABASE_URL", databaseURL), &out); !errors.Is(err, flag.ErrHelp) {
		t.Fatalf("error %v, want flag.ErrHelp", err)
	}
	for _, want := range []string{"DATABASE_URL", "SAGA_WORKERS", "--shutdown-grace", "SAGA_SHUTDOWN_GRACE", "(default 20s)", "manager migrate", "manager version"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the help does not say %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "hunter2") {
		t.Errorf("the help shows the password")
	}
}

func TestVersionAndUnknownCommands(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	if code := Main(t.Context(), []string{"version"}, environ(), &out, &errs); code != exitOK || !strings.Contains(out.String(), Version) {
		t.Errorf("version: exit code %d, %q", code, out.String())
	}
	out.Reset()
	if code := Main(t.Context(), []string{"grants", `the "role"`}, environ(), &out, &errs); code != exitOK || !strings.Contains(out.String(), `GRANT SELECT, INSERT ON event_store, outbox_events TO "the ""role"""`) {
		t.Errorf("grants: exit code %d, %q", code, out.String())
	}
	if code := Main(t.Context(), []string{"grants"}, environ(), &out, &errs); code != exitUsage {
		t.Errorf("grants to nobody: exit code %d", code)
	}
	if code := Main(t.Context(), []string{"dance"}, environ(), &out, &errs); code != exitUsage || !strings.Contains(errs.String(), "dance") {
		t.Errorf("an unknown command: exit code %d, %q", code, errs.String())
	}
}
