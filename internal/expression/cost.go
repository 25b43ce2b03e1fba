package expression

import (
	"strings"

	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// What CEL charges by itself for a function does not follow from what the function does with arguments of their size. tariff charges it: so
// many steps are as much work as one simple operation, which costs one.
const (
	stepsPerCost      = 16 // comparisons of elements, or steps through a text
	regexStepsPerCost = 64 // bytes of text times instructions of the program
)

// tariff implements cost.ActualCostEstimator.
type tariff struct{}

// CallCost implements cost.ActualCostEstimator.
func (tariff) CallCost(function, _ string, args []ref.Val, result ref.Val) *uint64 {
	work, ok := 0, true
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

// regexWork is the work of matching, in the steps of other functions.
func regexWork(args []ref.Val) (int, bool) {
	s, ok := texts(args, 2)
	if !ok {
		return 0, false
	}
	size, err := types.RegexProgramSize(s[1])
	if err != nil {
		return 0, false
	}
	return len(s[0]) * size / (regexStepsPerCost / stepsPerCost), true
}

func searchWork(args []ref.Val) (int, bool) {
	s, ok := texts(args, 2)
	if !ok {
		return 0, false
	}
	// It is a search for one substring, which gives up soon at most places.
	return len(s[0]) + strings.Count(s[0], s[1][:min(len(s[1]), 1)])*len(s[1]), true
}

// pairWork is the work of comparing each element with each.
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

// lengthOf is how long a text is, or how many values there are, with the length of those that are texts.
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
