package expression

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// escapeURL escapes a value for the place behind the part of a URL that is already rendered, so that a value can change neither the
// host, nor the path around it, nor the query. A value at the very beginning is the base of the URL and is left as it is; whoever calls
// the URL checks it as a whole.
func escapeURL(before, value string) (string, error) {
	if before == "" {
		return value, nil
	}
	if strings.Contains(before, "?") {
		return url.QueryEscape(value), nil
	}
	_, rest, absolute := strings.Cut(before, "://")
	if !absolute || !strings.Contains(rest, "/") {
		if !isHost(value) {
			return "", fmt.Errorf("%q cannot stand in the host of a URL", clip(value))
		}
		return value, nil
	}
	// DELETE /reservations/ with nothing behind it means another thing than the user wrote.
	if value == "" {
		return "", errors.New("the value is empty and cannot stand in the path of a URL")
	}
	return url.PathEscape(value), nil
}

func isHost(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isLetter(c) && (c < '0' || c > '9') && !strings.ContainsRune("-.:[]", rune(c)) {
			return false
		}
	}
	return s != ""
}
