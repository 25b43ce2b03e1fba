package saga

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Needs are the features that whoever reads a record has to understand, each with the first release
// that has it. Fields that only inform are added to records freely, and need nothing. A record that a
// release writes needs nothing that the release before it lacks, unless the saga uses such a feature.
type Needs map[string]string

func (n Needs) String() string {
	texts := make([]string, 0, len(n))
	for _, name := range slices.Sorted(maps.Keys(n)) {
		texts = append(texts, fmt.Sprintf("%s (since release %s)", name, n[name]))
	}
	return strings.Join(texts, ", ")
}

// with returns the union of two sets. Neither is changed.
func (n Needs) with(more Needs) Needs {
	if len(more) == 0 {
		return n
	}
	all := maps.Clone(more)
	maps.Copy(all, n)
	return all
}

// feature is something that definitions can use and that the first release did not have.
type feature struct {
	// name is the path of the field that brings it, such as Step.when.
	name, since string
	// used reports whether a definition uses it.
	used func(*Definition) bool
}

// features has a row for each field of Definition, Step, Effect and Retry that came after the first
// release and changes what a saga does.
var features []feature

// needsOf returns what a definition needs of its readers.
func needsOf(def *Definition, features []feature) Needs {
	var needs Needs
	for _, f := range features {
		if f.used(def) {
			needs = needs.with(Needs{f.name: f.since})
		}
	}
	return needs
}

// missing returns those needs for which there is no feature.
func (n Needs) missing(features []feature) Needs {
	var missing Needs
	for name, since := range n {
		if !slices.ContainsFunc(features, func(f feature) bool { return f.name == name }) {
			missing = missing.with(Needs{name: since})
		}
	}
	return missing
}

// NewerError says that a record holds what this version of the operator does not understand, because a
// newer one has written it. Nothing may be decided from such a record.
type NewerError struct {
	// Needs are the features that this version lacks. It is empty for a record that does not say.
	Needs Needs
	// Unknown is what was found and is not known.
	Unknown string
}

func (e *NewerError) Error() string {
	if len(e.Needs) > 0 {
		return "a newer version of the operator has written it, and to read it takes one with " + e.Needs.String()
	}
	return "a newer version of the operator has written it: this one does not know " + e.Unknown
}

// newer returns a *NewerError about something that is not known.
func newer(format string, args ...any) error {
	return &NewerError{Unknown: fmt.Sprintf(format, args...)}
}
