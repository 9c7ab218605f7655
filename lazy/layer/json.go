package layer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"unicode/utf16"
	"unicode/utf8"
)

// scanner reads JSON from front to back. After an error every method does nothing.
type scanner struct {
	r     io.Reader // gives what follows b; nil: nothing does
	b     []byte    // a part of the JSON: what has been read and not been let go
	pos   int       // in b
	gone  int64     // bytes before b
	depth int
	err   error
}

// window is how much of the JSON is in memory at once, in bytes. An element that has more makes it grow.
const window = 128 << 10

func newScanner(r io.Reader) *scanner { return &scanner{r: r, b: make([]byte, 0, window)} }

// fill reads on behind b, without moving what is there: strings that were read are parts of it. False is the end, or an error of r.
func (s *scanner) fill() bool {
	for empty := 0; s.r != nil && s.err == nil; empty++ {
		if len(s.b) == cap(s.b) {
			s.b = append(make([]byte, 0, 2*cap(s.b)), s.b...)
		}
		n, err := s.r.Read(s.b[len(s.b):cap(s.b)])
		s.b = s.b[:len(s.b)+n]
		if err == nil && n == 0 && empty == 100 {
			err = io.ErrNoProgress
		}
		if err != nil {
			s.r = nil
		}
		if err != nil && err != io.EOF {
			s.err = err
			return false
		}
		if n > 0 {
			return true
		}
	}
	return false
}

// more tells whether there is a byte at pos.
func (s *scanner) more() bool { return s.pos < len(s.b) || s.fill() }

// ahead gives up to n bytes from pos on.
func (s *scanner) ahead(n int) []byte {
	for len(s.b)-s.pos < n && s.fill() {
	}
	return s.b[s.pos:min(s.pos+n, len(s.b))]
}

// letGo ends the use of all strings that were read, so that their place can be taken.
func (s *scanner) letGo() {
	if s.r == nil || cap(s.b)-s.pos > cap(s.b)/4 {
		return
	}
	s.gone += int64(s.pos)
	s.b = s.b[:copy(s.b[:cap(s.b)], s.b[s.pos:])]
	s.pos = 0
}

func (s *scanner) fail(what string) {
	if s.err == nil {
		s.err = fmt.Errorf("JSON at byte %d: %s", s.gone+int64(s.pos), what)
	}
}

func (s *scanner) space() {
	for s.more() {
		switch s.b[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return
		}
	}
}

// take goes over white space and then c, if that is next.
func (s *scanner) take(c byte) bool {
	s.space()
	if s.err != nil || !s.more() || s.b[s.pos] != c {
		return false
	}
	s.pos++
	return true
}

func (s *scanner) literal(word string) bool {
	s.space()
	if s.err != nil || string(s.ahead(len(word))) != word {
		return false
	}
	s.pos += len(word)
	return true
}

func (s *scanner) null() bool {
	s.space()
	return s.more() && s.b[s.pos] == 'n' && s.literal("null")
}

// list reads what stands between brackets, calling item for each.
func (s *scanner) list(open, end byte, item func()) {
	if !s.take(open) {
		s.fail("no '" + string(open) + "'")
		return
	}
	if s.take(end) {
		return
	}
	if s.depth++; s.depth > maxDepth {
		s.fail("too deep")
	}
	for s.err == nil {
		item()
		if s.take(end) {
			break
		}
		if !s.take(',') {
			s.fail("no ',' or '" + string(end) + "'")
		}
	}
	s.depth--
}

func (s *scanner) array(item func()) { s.list('[', ']', item) }

// object reads an object; value is called where a key's value begins, and reads it.
func (s *scanner) object(value func(key []byte)) {
	s.list('{', '}', func() {
		key := s.text()
		if !s.take(':') {
			s.fail("no ':'")
			return
		}
		value(key)
	})
}

func (s *scanner) objectOrNull(value func(key []byte)) {
	if !s.null() {
		s.object(value)
	}
}

// string reads a string into p; null leaves p as it is.
func (s *scanner) string(p *[]byte) {
	if !s.null() {
		*p = s.text()
	}
}

// text reads a string. It is a part of the input, or a copy where that has escapes. What isn't UTF-8 becomes U+FFFD.
func (s *scanner) text() []byte {
	if !s.take('"') {
		s.fail("no string")
		return nil
	}
	start := s.pos
	for s.pos+8 <= min(len(s.b), start+maxText) && ordinary(binary.LittleEndian.Uint64(s.b[s.pos:])) {
		s.pos += 8
	}
	for ; s.more(); s.pos++ {
		switch c := s.b[s.pos]; {
		case c == '"':
			s.pos++
			return s.b[start : s.pos-1]
		case s.pos-start > maxText:
			s.fail("a string too long")
			return nil
		case c == '\\' || c >= utf8.RuneSelf:
			return s.longText(bytes.Clone(s.b[start:s.pos]))
		case c < ' ':
			s.fail("a control character in a string")
			return nil
		}
	}
	s.fail("a string without end")
	return nil
}

// ordinary tells whether none of eight bytes of a string is a quote, a backslash, a control character or beyond ASCII.
func ordinary(w uint64) bool {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	quote, backslash := w^'"'*ones, w^'\\'*ones // a byte is 0 where they are
	return (w|(w-' '*ones)|(quote-ones)|(backslash-ones))&tops == 0
}

// longText goes on with a string of which b was read.
func (s *scanner) longText(b []byte) []byte {
	for s.more() {
		if len(b) > maxText {
			s.fail("a string too long")
			return nil
		}
		switch c := s.b[s.pos]; {
		case c == '"':
			s.pos++
			return b
		case c < ' ':
			s.fail("a control character in a string")
			return nil
		case c == '\\':
			s.pos++
			b = s.escape(b)
			if s.err != nil {
				return nil
			}
		default:
			r, n := utf8.DecodeRune(s.ahead(utf8.UTFMax))
			s.pos += n
			b = utf8.AppendRune(b, r)
		}
	}
	s.fail("a string without end")
	return nil
}

// escape reads what stands behind a backslash.
func (s *scanner) escape(b []byte) []byte {
	if !s.more() {
		s.fail("a string without end")
		return b
	}
	c := s.b[s.pos]
	s.pos++
	switch c {
	case '"', '\\', '/':
		return append(b, c)
	case 'b':
		return append(b, '\b')
	case 'f':
		return append(b, '\f')
	case 'n':
		return append(b, '\n')
	case 'r':
		return append(b, '\r')
	case 't':
		return append(b, '\t')
	case 'u':
		r := s.hex4()
		if utf16.IsSurrogate(r) {
			// the second half, if there is one; a half alone is U+FFFD
			back := s.pos
			if string(s.ahead(2)) == `\u` {
				s.pos += 2
				if r = utf16.DecodeRune(r, s.hex4()); r != utf8.RuneError {
					return utf8.AppendRune(b, r)
				}
			}
			if s.err == nil {
				s.pos = back
			}
			r = utf8.RuneError
		}
		return utf8.AppendRune(b, r)
	}
	s.fail("an unknown escape")
	return b
}

func (s *scanner) hex4() rune {
	digits := s.ahead(4)
	if len(digits) < 4 {
		s.fail("an escape without end")
		return 0
	}
	var r rune
	for _, c := range digits {
		switch {
		case '0' <= c && c <= '9':
			r = r<<4 | rune(c-'0')
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			r = r<<4 | rune(c|0x20-'a'+10)
		default:
			s.fail("an escape that isn't hexadecimal")
			return 0
		}
	}
	s.pos += 4
	return r
}

// int reads a whole number into p; null leaves p as it is.
func (s *scanner) int(p *int64) {
	if s.null() {
		return
	}
	minus := s.take('-')
	digits := s.digits()
	if s.err == nil && s.more() && (s.b[s.pos] == '.' || s.b[s.pos]|0x20 == 'e') {
		s.fail("a number that isn't whole")
	}
	var v uint64
	for _, c := range digits {
		if v > 1<<63/10 {
			s.fail("a number beyond 64 bits")
			return
		}
		v = v*10 + uint64(c-'0')
	}
	switch {
	case minus && v <= 1<<63:
		*p = -int64(v)
	case !minus && v < 1<<63:
		*p = int64(v)
	default:
		s.fail("a number beyond 64 bits")
	}
}

// digits reads the whole part of a number, without its sign.
func (s *scanner) digits() []byte {
	start := s.pos
	for s.more() && '0' <= s.b[s.pos] && s.b[s.pos] <= '9' {
		s.pos++
	}
	d := s.b[start:s.pos]
	if len(d) == 0 || len(d) > 1 && d[0] == '0' {
		s.fail("no number")
	}
	return d
}

// skip goes over a value of any kind.
func (s *scanner) skip() {
	s.space()
	if s.err != nil || !s.more() {
		s.fail("no value")
		return
	}
	switch s.b[s.pos] {
	case '{':
		s.object(func([]byte) { s.skip() })
	case '[':
		s.array(s.skip)
	case '"':
		s.text()
	default:
		if !s.literal("true") && !s.literal("false") && !s.null() {
			s.number()
		}
	}
}

// number goes over a number of any form.
func (s *scanner) number() {
	if s.b[s.pos] == '-' {
		s.pos++
	}
	s.digits()
	if s.err == nil && s.more() && s.b[s.pos] == '.' {
		s.pos++
		s.fraction()
	}
	if s.err == nil && s.more() && s.b[s.pos]|0x20 == 'e' {
		s.pos++
		if s.more() && (s.b[s.pos] == '+' || s.b[s.pos] == '-') {
			s.pos++
		}
		s.fraction()
	}
}

// fraction goes over digits, of which there is at least one.
func (s *scanner) fraction() {
	start := s.pos
	for s.more() && '0' <= s.b[s.pos] && s.b[s.pos] <= '9' {
		s.pos++
	}
	if s.pos == start {
		s.fail("no number")
	}
}
