package sinktest

import (
	"fmt"
	"os"
	"time"

	"go.uber.org/goleak"
)

// Main runs a package's tests and then waits until nothing is left running of them. It returns the exit code:
//
//	func TestMain(m *testing.M) { os.Exit(sinktest.Main(m.Run)) }
func Main(run func() int) int {
	code := run()
	if code != 0 {
		return code
	}
	// One call of goleak waits for less than a second.
	err := goleak.Find()
	for deadline := time.Now().Add(patience); err != nil && time.Now().Before(deadline); {
		err = goleak.Find()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}
