package layer

import "strings"

// arena makes strings that lie together, so that many short ones cost little more than their bytes. Those of a block are freed together.
type arena struct{ b strings.Builder }

const arenaBlock = 32 << 10

// string gives p as a string.
func (a *arena) string(p []byte) string {
	if len(p) > arenaBlock/8 {
		return string(p)
	}
	if a.b.Cap()-a.b.Len() < len(p) {
		a.b.Reset()
		a.b.Grow(arenaBlock)
	}
	a.b.Write(p)
	return a.b.String()[a.b.Len()-len(p):]
}
