package controllers

import (
	"testing"
	"time"
)

func TestCoarseKeepsAnAge(t *testing.T) {
	t.Parallel()
	for age, want := range map[time.Duration]time.Duration{
		0:                         0,
		time.Microsecond:          time.Second,
		1900 * time.Millisecond:   time.Second,
		119*time.Second + 1:       119 * time.Second,
		2*time.Hour + time.Second: 2 * time.Hour,
	} {
		if got := coarse(age); got != want {
			t.Errorf("%s is shown as %s, want %s", age, got, want)
		}
	}
}
