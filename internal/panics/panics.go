// Package panics tells about a panic that has been recovered.
package panics

import (
	"fmt"
	"runtime"
	"strings"
)

// Site returns where a panic came from, for example " at manifest.go:120": the innermost place outside the
// Go runtime. The deferred function that has recovered calls it. The result is empty if there is none.
func Site() string {
	pc := make([]uintptr, 16)
	frames := runtime.CallersFrames(pc[:runtime.Callers(3, pc)])
	for {
		f, more := frames.Next()
		if f.Function != "" && !strings.HasPrefix(f.Function, "runtime.") {
			return fmt.Sprintf(" at %s:%d", f.File[strings.LastIndexByte(f.File, '/')+1:], f.Line)
		}
		if !more {
			return ""
		}
	}
}
