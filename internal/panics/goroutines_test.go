package panics

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// wrappers recover from a panic. They are deferred, or call what may panic.
var wrappers = []string{
	"panics.Recover", "panics.Wrap", "panics.Catch", "panics.Restart", "guard", // this package's, and the controllers' own
	"caught", "edge", "guarded", // those of the outbox and of projections, which say more in their errors
}

// unwrapped are the goroutines and callbacks of functions that need no wrapper, and why.
var unwrapped = map[string]string{
	"cmd/manager/run/health.go: serve":                  "closing a server",
	"controllers/saga_events.go: Start":                 "write guards each event",
	"controllers/sink_tend.go: Start":                   "every guards each round",
	"internal/cqrs/local.go: Run":                       "handle recovers from each handler; the other one waits",
	"internal/engine/pool.go: start":                    "work runs each job by runSafely",
	"internal/engine/shutdown.go: advanced":             "it waits",
	"internal/eventstore/postgres/announce.go: Run":     "again recovers each time",
	"internal/eventstore/postgres/gather.go: enqueue":   "flush recovers; after a fault of the queue itself appends would wait for ever, so it ends the process",
	"internal/outbox/deliver.go: launch":                "publish recovers from its publisher",
	"internal/outbox/relay.go: Run":                     "maintain catches each round",
	"internal/outbox/relay.go: start":                   "publish catches",
	"internal/outbox/shard.go: run":                     "it cancels a context",
	"internal/outbox/shard.go: follow":                  "readFrom catches",
	"internal/outbox/tend.go: publishAll":               "publish recovers from its publisher",
	"internal/outbox/sink/nats/session.go: Dial":        "it closes a connection",
	"internal/outbox/sink/rabbitmq/listen.go: Listen":   "it closes a connection",
	"internal/outbox/sink/rabbitmq/session.go: connect": "it closes a connection; the other one copies a flag",
	"internal/outbox/sink/rabbitmq/session.go: bound":   "it closes a connection",
	"internal/projection/runner.go: Run":                "supervise guards what it calls",
	"internal/projection/runner.go: supervise":          "feedSafely guards",
	"internal/server/follow.go: stream":                 "it cancels a context",
}

// TestEveryGoroutineRecovers reads the operator's code: a panic in a goroutine, a timer or a runnable
// of the manager that is not wrapped would end the process, and with it every tenant's sagas.
func TestEveryGoroutineRecovers(t *testing.T) {
	t.Parallel()
	needed := maps.Clone(unwrapped)
	for _, dir := range []string{"internal", "controllers", "cmd"} {
		err := filepath.WalkDir(filepath.Join("../..", dir), func(path string, e fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case e.IsDir() && slices.Contains([]string{"throwaway", "testenv", "sinktest", "storetest", "rabbittest", "panics", "supervise"}, e.Name()):
				return fs.SkipDir // the test servers and suites, and the wrappers themselves
			case e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
				return nil
			}
			checkFile(t, path, needed)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, place := range slices.Sorted(maps.Keys(needed)) {
		t.Errorf("%s has no goroutine without a wrapper: take it off the list", place)
	}
}

func checkFile(t *testing.T, path string, needed map[string]string) {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		place := filepath.ToSlash(strings.TrimPrefix(path, "../../")) + ": " + f.Name.Name
		ast.Inspect(f, func(n ast.Node) bool {
			begun := begins(n)
			if begun == nil || wraps(begun) || cancels(begun) {
				return true
			}
			if delete(needed, place); unwrapped[place] == "" {
				t.Errorf("%s: what begins here is not wrapped by one of %s, and not listed with a reason", files.Position(n.Pos()), strings.Join(wrappers, ", "))
			}
			return true
		})
	}
}

// begins returns what a node has run in a goroutine of its own, or nil.
func begins(n ast.Node) ast.Node {
	switch n := n.(type) {
	case *ast.GoStmt:
		return n.Call
	case *ast.CallExpr:
		name := called(n)
		last := name[strings.LastIndexByte(name, '.')+1:]
		switch {
		case strings.Contains(name, ".") && last == "Go", last == "AfterFunc", name == "mgr.Add":
			return n.Args[len(n.Args)-1]
		}
	}
	return nil
}

// wraps reports whether a wrapper is called or deferred in a function.
func wraps(n ast.Node) bool {
	found := false
	ast.Inspect(n, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok && slices.Contains(wrappers, called(call)) {
			found = true
		}
		return !found
	})
	return found
}

// cancels reports whether it is the function that cancels a context.
func cancels(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.Ident:
		return n.Name == "cancel"
	case *ast.SelectorExpr:
		return n.Sel.Name == "cancel"
	}
	return false
}

func called(c *ast.CallExpr) string {
	switch f := c.Fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		if x, ok := f.X.(*ast.Ident); ok {
			return x.Name + "." + f.Sel.Name
		}
		return "." + f.Sel.Name
	}
	return ""
}
