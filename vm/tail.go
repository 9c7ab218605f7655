package vm

import (
	"strings"
	"sync"
	"unicode"
)

// Tail is a writer that keeps the last bytes written to it. It is safe for
// concurrent use.
type Tail struct {
	mu  sync.Mutex
	max int
	buf []byte
}

// NewTail returns a Tail of up to max bytes.
func NewTail(max int) *Tail { return &Tail{max: max} }

// Write never fails.
func (t *Tail) Write(p []byte) (int, error) {
	n := len(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(p) > t.max {
		p = p[len(p)-t.max:]
	}
	if over := len(t.buf) + len(p) - t.max; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	t.buf = append(t.buf, p...)
	return n, nil
}

// String is what was kept.
func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}

// Lines gives the last n lines that hold anything, without control characters:
// what a hostile guest wrote to its console may be shown on a terminal.
func (t *Tail) Lines(n int) []string {
	var lines []string
	for line := range strings.Lines(t.String()) {
		line = strings.Map(func(r rune) rune {
			if r == '\t' {
				return ' '
			}
			if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
				return -1
			}
			return r
		}, line)
		if strings.TrimSpace(line) != "" {
			lines = append(lines, line)
		}
	}
	return lines[max(0, len(lines)-n):]
}
