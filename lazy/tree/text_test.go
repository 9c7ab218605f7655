package tree

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// Layers and trees as text, a line each:
//
//	dir NAME MODE [uid=N] [gid=N] [mtime=N] [xattr=NAME:VALUE]
//	file NAME MODE CONTENT …       CONTENT is a number for what is in it
//	symlink NAME TARGET …
//	link NAME TARGET …             a hard link
//	fifo NAME MODE …, char NAME MODE MAJOR:MINOR …, block …
//
// A listing names every inode once, by its first path; "= PATH" are further names of it. Names are quoted as in Go where
// they hold a space.

func parseLayer(t testing.TB, text string) (all []Entry) {
	t.Helper()
	for _, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		f := strings.Fields(line)
		e := Entry{Name: unquote(t, f[1]), Mode: 0o644}
		rest := f[2:]
		next := func() string { s := rest[0]; rest = rest[1:]; return s }
		mode := func() { m, err := strconv.ParseUint(next(), 8, 32); check(t, line, err); e.Mode = uint32(m) }
		switch f[0] {
		case "dir":
			e.Type = Dir
			mode()
		case "file":
			e.Type = Regular
			mode()
			n, err := strconv.Atoi(next())
			check(t, line, err)
			if n > 0 {
				e.Size, e.Content = int64(n), int32(n)
			}
		case "symlink":
			e.Type, e.Mode, e.Linkname = Symlink, 0o777, unquote(t, next())
		case "link":
			e.Type, e.Linkname = HardLink, unquote(t, next())
		case "fifo":
			e.Type = Fifo
			mode()
		case "char", "block":
			e.Type = Char
			if f[0] == "block" {
				e.Type = Block
			}
			mode()
			_, err := fmt.Sscanf(next(), "%d:%d", &e.Major, &e.Minor)
			check(t, line, err)
		default:
			t.Fatalf("line %q", line)
		}
		for _, kv := range rest {
			k, v, _ := strings.Cut(kv, "=")
			if k == "xattr" {
				name, value, _ := strings.Cut(v, ":")
				e.Xattrs = append(e.Xattrs, Xattr{name, []byte(value)})
				continue
			}
			base := 10
			if k == "mode" {
				base = 8
			}
			n, err := strconv.ParseInt(v, base, 64)
			check(t, line, err)
			switch k {
			case "uid":
				e.UID = uint32(n)
			case "gid":
				e.GID = uint32(n)
			case "mtime":
				e.Mtime.Sec = n
			case "mode":
				e.Mode = uint32(n)
			default:
				t.Fatalf("line %q: %s", line, k)
			}
		}
		all = append(all, e)
	}
	return all
}

func check(t testing.TB, line string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("line %q: %v", line, err)
	}
}

func unquote(t testing.TB, s string) string {
	t.Helper()
	if !strings.HasPrefix(s, `"`) {
		return s
	}
	u, err := strconv.Unquote(s)
	check(t, s, err)
	return u
}

func quote(s string) string {
	if q := strconv.Quote(s); len(q) != len(s)+2 || strings.ContainsAny(s, " ") {
		return q
	}
	return s
}

// list is a tree as text, in the order of a walk by names.
func list(tr *Tree) string {
	var b strings.Builder
	first := make(map[Ino]string)
	type item struct {
		path string
		ino  Ino
	}
	for todo := []item{{"/", 0}}; len(todo) > 0; {
		it := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		a := tr.Stat(it.ino)
		if old, ok := first[it.ino]; ok {
			fmt.Fprintf(&b, "%s = %s\n", quote(it.path), quote(old))
			continue
		}
		first[it.ino] = it.path
		fmt.Fprintf(&b, "%s %s", quote(it.path), [...]string{Dir: "dir", Regular: "file", Symlink: "symlink", Char: "char", Block: "block", Fifo: "fifo"}[a.Type])
		switch a.Type {
		case Symlink:
			fmt.Fprintf(&b, " %s", quote(a.Target))
		case Char, Block:
			fmt.Fprintf(&b, " %04o %d:%d", a.Mode, a.Major, a.Minor)
		case Regular:
			fmt.Fprintf(&b, " %04o", a.Mode)
			if a.Size > 0 {
				fmt.Fprintf(&b, " layer%d:%d", a.Content.Layer, a.Content.Index)
			}
		default:
			fmt.Fprintf(&b, " %04o", a.Mode)
		}
		if a.UID != 0 {
			fmt.Fprintf(&b, " uid=%d", a.UID)
		}
		if a.GID != 0 {
			fmt.Fprintf(&b, " gid=%d", a.GID)
		}
		if a.Mtime.Sec != 0 {
			fmt.Fprintf(&b, " mtime=%d", a.Mtime.Sec)
		}
		if a.Type != Dir && a.Nlink != 1 {
			fmt.Fprintf(&b, " nlink=%d", a.Nlink)
		}
		for k, v := range tr.Xattrs(it.ino) {
			fmt.Fprintf(&b, " xattr=%s:%s", k, v)
		}
		b.WriteByte('\n')
		var kids []item
		for d := range tr.Children(it.ino) {
			kids = append(kids, item{strings.TrimSuffix(it.path, "/") + "/" + d.Name, d.Ino})
		}
		for i := len(kids) - 1; i >= 0; i-- {
			todo = append(todo, kids[i])
		}
	}
	return b.String()
}
