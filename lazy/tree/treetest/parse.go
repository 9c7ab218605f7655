package treetest

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/pexfs/pex/lazy/tree"
)

// parser reads the layers of a case.
type parser struct {
	last map[string]tree.Entry // what was said last of a name: links repeat it
}

func (p *parser) layer(text string) (entries []tree.Entry, contents []Content, err error) {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		e, content, err := p.entry(line)
		if err != nil {
			return nil, nil, fmt.Errorf("line %.200q: %w", line, err)
		}
		if e.Size > 0 {
			e.Content = int32(len(contents))
			contents = append(contents, Content{content, e.Size})
		}
		entries = append(entries, e)
		p.last[path.Clean("/"+e.Name)] = e
	}
	return entries, contents, nil
}

// fields are what is left of a line. Reading beyond them gives empty ones.
type fields []string

func (f *fields) next() string {
	if len(*f) == 0 {
		return ""
	}
	s := (*f)[0]
	*f = (*f)[1:]
	return s
}

func (p *parser) entry(line string) (e tree.Entry, content string, err error) {
	all, err := tokens(line)
	if err != nil {
		return e, "", err
	}
	f := fields(all)
	kind := f.next()
	var errs []error
	text := func() string {
		s, err := unquote(f.next())
		errs = append(errs, err)
		return s
	}
	e.Name = text()
	mode := func() {
		m, err := strconv.ParseUint(f.next(), 8, 12)
		errs = append(errs, err)
		e.Mode = uint32(m)
	}
	switch kind {
	case "dir":
		e.Type = tree.Dir
		mode()
	case "file":
		e.Type = tree.Regular
		mode()
		if len(f) > 0 && !isKey(f[0]) {
			content = text()
			e.Size = int64(len(content))
		}
	case "symlink":
		e.Type, e.Mode, e.Linkname = tree.Symlink, 0o777, text()
	case "link":
		name := text()
		old, ok := p.last[path.Clean("/"+name)]
		if !ok {
			old.Mode = 0o644
		}
		e.Type, e.Linkname = tree.HardLink, name
		e.Mode, e.UID, e.GID, e.Mtime = old.Mode, old.UID, old.GID, old.Mtime
	case "fifo":
		e.Type = tree.Fifo
		mode()
	case "char", "block":
		e.Type = tree.Char
		if kind == "block" {
			e.Type = tree.Block
		}
		mode()
		_, err := fmt.Sscanf(f.next(), "%d:%d", &e.Major, &e.Minor)
		errs = append(errs, err)
	case "other":
		e.Type = tree.Fifo + 1
		mode()
	default:
		return e, "", fmt.Errorf("%q is no type", kind)
	}
	for _, kv := range f {
		errs = append(errs, set(&e, kv))
	}
	if e.Size < int64(len(content)) && e.Size >= 0 {
		errs = append(errs, errors.New("size is less than the content"))
	}
	return e, content, errors.Join(errs...)
}

func isKey(s string) bool {
	k, _, ok := strings.Cut(s, "=")
	return ok && strings.Contains(" uid gid mode mtime size xattr ", " "+k+" ")
}

// set reads KEY=VALUE.
func set(e *tree.Entry, kv string) error {
	k, v, _ := strings.Cut(kv, "=")
	switch k {
	case "uid":
		return parseUint(&e.UID, v, 10)
	case "gid":
		return parseUint(&e.GID, v, 10)
	case "mode":
		return parseUint(&e.Mode, v, 8)
	case "size":
		n, err := strconv.ParseInt(v, 10, 64)
		e.Size = n
		return err
	case "mtime":
		sec, ns, ok := strings.Cut(v, ".")
		if ok && len(ns) != 9 {
			return fmt.Errorf("mtime=%s has not nine digits of nanoseconds", v)
		}
		var err error
		if ok {
			err = parseUint(&e.Mtime.Nsec, ns, 10)
		}
		n, err2 := strconv.ParseInt(sec, 10, 64)
		e.Mtime.Sec = n
		return errors.Join(err, err2)
	case "xattr":
		name, value, _ := strings.Cut(v, ":")
		value, err := unquote(value)
		e.Xattrs = append(e.Xattrs, tree.Xattr{Name: name, Value: []byte(value)})
		return err
	}
	return fmt.Errorf("%q is no field", k)
}

func parseUint(to *uint32, s string, base int) error {
	n, err := strconv.ParseUint(s, base, 32)
	*to = uint32(n)
	return err
}

// tokens splits a line at spaces that are not inside of quotes.
func tokens(line string) ([]string, error) {
	var all []string
	start, quoted := -1, false
	for i := 0; i < len(line); i++ {
		c := line[i]
		if c == ' ' && !quoted {
			if start >= 0 {
				all = append(all, line[start:i])
			}
			start = -1
			continue
		}
		if start < 0 {
			start = i
		}
		switch {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		}
	}
	if quoted {
		return nil, errors.New("a quote is open")
	}
	if start >= 0 {
		all = append(all, line[start:])
	}
	return all, nil
}

func unquote(s string) (string, error) {
	if !strings.HasPrefix(s, `"`) {
		return s, nil
	}
	return strconv.Unquote(s)
}

// quote quotes what could not be read otherwise.
func quote(s string) string {
	if q := strconv.QuoteToASCII(s); len(q) != len(s)+2 || s == "" || strings.Contains(s, " ") {
		return q
	}
	return s
}
