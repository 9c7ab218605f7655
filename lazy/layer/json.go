package layer

import (
	"bytes"
	"fmt"
	"unicode/utf16"
	"unicode/utf8"
)

// scanner reads JSON from front to back. After an error every method does nothing.
type scanner struct {
	b     []byte
	pos   int
	depth int
	err   error
}

func (s *scanner) fail(what string) {
	if s.err == nil {
		s.err = fmt.Errorf("JSON at byte %d: %s", s.pos, what)
	}
}

func (s *scanner) space() {
	for s.pos < len(s.b) {
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
	if s.err != nil || s.pos == len(s.b) || s.b[s.pos] != c {
		return false
	}
	s.pos++
	return true
}

func (s *scanner) literal(word string) bool {
	s.space()
	if s.err != nil || len(s.b)-s.pos < len(word) || string(s.b[s.pos:s.pos+len(word)]) != word {
		return false
	}
	s.pos += len(word)
	return true
}

func (s *scanner) null() bool { return s.literal("null") }

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
	for ; s.pos < len(s.b); s.pos++ {
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

// longText goes on with a string of which b was read.
func (s *scanner) longText(b []byte) []byte {
	for s.pos < len(s.b) {
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
			r, n := utf8.DecodeRune(s.b[s.pos:])
			s.pos += n
			b = utf8.AppendRune(b, r)
		}
	}
	s.fail("a string without end")
	return nil
}

// escape reads what stands behind a backslash.
func (s *scanner) escape(b []byte) []byte {
	if s.pos == len(s.b) {
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
			if bytes.HasPrefix(s.b[s.pos:], []byte(`\u`)) {
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
	if len(s.b)-s.pos < 4 {
		s.fail("an escape without end")
		return 0
	}
	var r rune
	for _, c := range s.b[s.pos:][:4] {
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
	if s.err == nil && s.pos < len(s.b) && (s.b[s.pos] == '.' || s.b[s.pos]|0x20 == 'e') {
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
	for s.pos < len(s.b) && '0' <= s.b[s.pos] && s.b[s.pos] <= '9' {
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
	if s.err != nil || s.pos == len(s.b) {
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
	if s.err == nil && s.pos < len(s.b) && s.b[s.pos] == '.' {
		s.pos++
		s.fraction()
	}
	if s.err == nil && s.pos < len(s.b) && s.b[s.pos]|0x20 == 'e' {
		s.pos++
		if s.pos < len(s.b) && (s.b[s.pos] == '+' || s.b[s.pos] == '-') {
			s.pos++
		}
		s.fraction()
	}
}

// fraction goes over digits, of which there is at least one.
func (s *scanner) fraction() {
	start := s.pos
	for s.pos < len(s.b) && '0' <= s.b[s.pos] && s.b[s.pos] <= '9' {
		s.pos++
	}
	if s.pos == start {
		s.fail("no number")
	}
}
