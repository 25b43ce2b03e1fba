package expression

import (
	"strings"
	"sync"

	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// CEL's own cost of a function does not follow from the work that the function does on arguments of their
// size. The tariff charges that work: one unit, the cost of a simple operation, for each of these.
const (
	stepsPerCost        = 16 // steps: comparisons of elements, or bytes of text
	regexStepsPerCost   = 32 // bytes of text times instructions of the regular expression
	instructionsPerCost = 8  // instructions of a regular expression that is compiled
)

// tariff implements cost.ActualCostEstimator.
type tariff struct{}

// CallCost implements cost.ActualCostEstimator.
func (tariff) CallCost(function, _ string, args []ref.Val, result ref.Val) *uint64 {
	var work int
	ok := true
	switch function {
	case overloads.Matches:
		work, ok = regexWork(args)
	case "indexOf", "lastIndexOf":
		work, ok = searchWork(args)
	case "distinct", "sets.contains", "sets.equivalent", "sets.intersects", "hasOnly", "hasAny", "hasAll", "hasExactly":
		work = pairWork(args)
	case "replace", "join", "format", "sort", "flatten", "base64.encode", "base64.decode", "strings.quote", "reverse", "substring", "split", "lowerAscii", "upperAscii", "trim":
		work = lengthOf(args[0]) + lengthOf(result)
	default:
		return nil
	}
	if !ok {
		return nil
	}
	cost := uint64(1 + work/stepsPerCost)
	return &cost
}

// regexWork returns the work of a match, in steps.
func regexWork(args []ref.Val) (int, bool) {
	s, ok := texts(args, 2)
	if !ok {
		return 0, false
	}
	size, err := regexSizes.of(s[1])
	if err != nil {
		return 0, false
	}
	cost := len(s[0])*size/regexStepsPerCost + size/instructionsPerCost
	return cost * stepsPerCost, true
}

// sizes remembers the program sizes of regular expressions, since determining one takes as long as
// compiling it.
type sizes struct {
	mu    sync.Mutex
	known map[string]int
}

var regexSizes = &sizes{known: map[string]int{}}

// Limits of what sizes remembers.
const (
	maxKnownSizes   = 1024
	maxKnownPattern = 256 // bytes
)

func (s *sizes) of(pattern string) (int, error) {
	s.mu.Lock()
	size, ok := s.known[pattern]
	s.mu.Unlock()
	if ok {
		return size, nil
	}
	size, err := types.RegexProgramSize(pattern)
	if err != nil || len(pattern) > maxKnownPattern {
		return size, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.known) >= maxKnownSizes {
		clear(s.known)
	}
	s.known[pattern] = size
	return size, nil
}

func searchWork(args []ref.Val) (int, bool) {
	s, ok := texts(args, 2)
	if !ok {
		return 0, false
	}
	// The search compares more than one byte only at places with the right first byte.
	return len(s[0]) + strings.Count(s[0], s[1][:min(len(s[1]), 1)])*len(s[1]), true
}

// pairWork returns the work of comparing each element with each other, in steps.
func pairWork(args []ref.Val) int {
	elements, weight := 1, 1
	for _, a := range args {
		if l, ok := a.(traits.Lister); ok {
			elements = max(elements, int(l.Size().(types.Int)))
		}
		weight += weigh(a, maxWork)
	}
	return elements * weight
}

// lengthOf returns the length of a text in bytes, or the weight of any other value.
func lengthOf(v ref.Val) int {
	switch v := v.(type) {
	case types.String:
		return len(v)
	case types.Bytes:
		return len(v)
	default:
		return weigh(v, maxNodes)
	}
}
