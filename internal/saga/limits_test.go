package saga

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLimitsNameFieldAndFlag(t *testing.T) {
	t.Parallel()
	within := Effect{AttemptTimeout: time.Minute, Retry: Retry{InitialBackoff: time.Second, MaxBackoff: time.Second}}
	hangs, hammers := within, within
	hangs.AttemptTimeout += time.Millisecond
	hammers.Retry = Retry{InitialBackoff: 99 * time.Millisecond}
	usual := within
	usual.Retry.InitialBackoff = 0 // taken as 100ms
	def := Definition{Steps: []Step{
		{Do: within, Compensation: &usual}, {Do: hangs, Compensation: &hammers},
	}}
	limits := Limits{MaxAttemptTimeout: time.Minute, MinBackoff: 100 * time.Millisecond}
	var got []string
	for _, e := range limits.Check(&def) {
		flag := e.Message[strings.Index(e.Message, "--"):]
		flag, _, _ = strings.Cut(flag, ")")
		got = append(got, e.Field+" "+flag)
	}
	want := []string{
		"steps[1].attemptTimeout --max-attempt-timeout", "steps[1].compensation.retry.initialBackoff --min-backoff", "steps[1].compensation.retry.maxBackoff --min-backoff",
	}
	if !slices.Equal(got, want) {
		t.Errorf("wrong are %q, want %q", got, want)
	}
	if wrong := (Limits{}).Check(&def); len(wrong) != 0 {
		t.Errorf("without limits, wrong are %v", wrong)
	}
}
