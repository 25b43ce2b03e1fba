package expression

import "bytes"

// nodeBytes is what a value takes in memory that was decoded from JSON, or its name: an object with one entry, the worst, takes some 400
// bytes and has three of them.
const nodeBytes = 160

// TreeBytes estimates from above, quickly, what a JSON value takes in memory when it is decoded.
func TreeBytes(raw []byte) int64 {
	nodes := 1
	for _, separator := range [][]byte{{','}, {':'}, {'{'}, {'['}} {
		nodes += bytes.Count(raw, separator)
	}
	return int64(nodes)*nodeBytes + int64(len(raw))
}

// ValueBytes estimates what a JSON-like Go value takes in memory.
func ValueBytes(v any) int64 {
	switch v := v.(type) {
	case string:
		return nodeBytes + int64(len(v))
	case []any:
		sum := int64(nodeBytes)
		for _, e := range v {
			sum += ValueBytes(e)
		}
		return sum
	case map[string]any:
		sum := int64(nodeBytes)
		for k, e := range v {
			sum += nodeBytes + int64(len(k)) + ValueBytes(e)
		}
		return sum
	default:
		return nodeBytes
	}
}
