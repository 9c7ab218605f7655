package e2e

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// stack is layers, bottom first, and what they come to.
type stack struct {
	layers [][]entry
	dir    string // what the unpacker made of them
	// refused is why the last entry can't be applied: the whole image is to be refused.
	refused error
	// tame says that umoci must make the same of it.
	tame bool
}

// makeStack makes the stack of a seed below dir.
//
// Stacks of odd seeds are tame: umoci 0.4.7 departs from the rules that the unpacker follows where
//
//   - a layer has d/x and no d: d gets the time of unpacking, and mode 0777 less the umask;
//   - a layer has d/x, no d, and .wh.d: d keeps what a lower layer said of it;
//   - a layer has only d/.wh.x: no d is made;
//   - a layer has d/x where d is a file of a lower layer: it fails; and so where x is a hard link to itself, or to something
//     that it replaces;
//   - a hard link's entry has another mode, owner or time than its target: that isn't applied;
//   - a whiteout or opaque marker removes something from a directory that the layer gave before: its time changes;
//   - there are AUFS's own names, old GNU sparse files, or global headers: they are made, or it fails.
//
// In a tame stack a layer gives each directory before it changes it, and all that does not occur.
func makeStack(t *testing.T, seed uint64, dir string) *stack {
	t.Helper()
	s := &stack{dir: dir, tame: seed%2 == 1}
	m := stackMaker{r: rand.New(rand.NewPCG(seed, 0)), stack: s}
	inRoot(t, dir, func() (err error) {
		if m.u, err = newUnpacker(); err != nil {
			return err
		}
		for range 2 + m.r.IntN(4) {
			if s.refused != nil {
				break
			}
			if err := m.makeLayer(); err != nil {
				return fmt.Errorf("seed %d: %w\n%s", seed, err, describe(s.layers))
			}
		}
		if s.refused == nil {
			err = m.u.end()
		}
		return err
	})
	return s
}

// stackMaker makes random entries, and applies each at once: that later ones hit something, it looks at what there is.
type stackMaker struct {
	r     *rand.Rand
	u     *unpacker
	stack *stack
	layer []entry
	given map[string]bool // directories that the layer has given, of a tame stack
}

func (m *stackMaker) makeLayer() error {
	m.u.begin()
	m.layer, m.given = nil, map[string]bool{}
	var err error
	n := m.r.IntN(16)
	for i := 0; i < n && err == nil && m.stack.refused == nil; i++ {
		if m.stack.tame {
			err = m.tameEntry()
		} else {
			m.wildEntry()
		}
	}
	m.stack.layers = append(m.stack.layers, m.layer)
	return err
}

func (m *stackMaker) add(e entry) {
	m.layer = append(m.layer, e)
	m.stack.refused = m.u.apply(e)
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func (m *stackMaker) one(in int) bool { return m.r.IntN(in) == 0 }

func (m *stackMaker) name() string {
	if m.one(12) {
		return pick(m.r, strings.Repeat("n", 255), "é", "\xff\xfe", "wh.x", ".w", " a b ", "new\nline", "a\\b", "…", "c:1=2", ".whx")
	}
	return pick(m.r, "a", "b", "c", "d", "x", "x-1")
}

func (m *stackMaker) path() string {
	p := m.name()
	for m.one(2) && strings.Count(p, "/") < 6 {
		p += "/" + m.name()
	}
	return p
}

// spell writes a path in one of the ways that mean the same.
func (m *stackMaker) spell(p string) string {
	if !m.one(3) {
		return p
	}
	switch first, rest, ok := strings.Cut(p, "/"); m.r.IntN(6) {
	case 0:
		return "/" + p
	case 1:
		return m.name() + "/../" + p
	case 2:
		if ok {
			return first + "//./" + rest
		}
	case 3:
		return "../../" + p
	}
	return "./" + p
}

func (m *stackMaker) wildEntry() {
	p := m.path()
	e := m.attributes(entry{name: m.spell(p)})
	switch n := m.r.IntN(100); {
	case n < 25:
		e.kind = '5'
		if m.one(10) {
			e.name = pick(m.r, "./", "/", "x/..")
		} else if m.one(2) {
			e.name += "/"
		}
	case n < 50:
		e = m.file(e)
	case n < 65:
		e.kind, e.link = '2', m.target()
	case n < 78:
		e.kind, e.link = '1', p
		if names := m.existing(fs.FileMode.IsDir, false); len(names) > 0 && !m.one(50) {
			e.link = pick(m.r, names...)
		}
		e.link = m.spell(e.link)
	case n < 90:
		e.kind, e.name = pick(m.r, byte('0'), '0', '0', '1', '3', '5'), m.spell(path.Dir(p)+"/.wh."+path.Base(p))
	case n < 94:
		e.kind, e.name = '0', m.spell(pick(m.r, path.Dir(p), p)+"/.wh..wh..opq")
	case n < 98:
		e.kind = pick(m.r, byte('3'), '4', '6')
	case n < 99:
		e.kind, e.name = '0', path.Dir(p)+"/"+pick(m.r, ".wh..wh.plnk/a", ".wh..wh.aufs", ".wh.x/a")
	default:
		e = entry{kind: 'g'}
	}
	if e.kind == '1' && strings.Contains(e.name, ".wh.") {
		e.link = "x"
	}
	m.add(m.legal(e))
}

func (m *stackMaker) tameEntry() error {
	// where: an existing directory, by a path that may lead through symlinks
	dir := pick(m.r, append(m.existing(fs.FileMode.IsDir, true), "", "")...)
	real, err := m.realDir(dir)
	if err != nil {
		return err
	}
	for _, d := range above(real) {
		if !m.given[d] {
			m.given[d] = true
			m.add(m.legal(m.attributes(entry{kind: '5', name: d + "/"})))
		}
	}
	base := m.name()
	e := m.attributes(entry{name: m.spell(strings.TrimPrefix(dir+"/"+base, "/"))})
	at := strings.TrimPrefix(real+"/"+base, "/")
	var st unix.Stat_t
	old := unix.Lstat("/"+at, &st)
	isDir := old == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch n := m.r.IntN(100); {
	case n < 25:
		e.kind, m.given[at] = '5', true
	case n < 55:
		e = m.file(e)
		for e.sparse == sparseGNU {
			e.sparse = dense
		}
	case n < 67:
		e.kind, e.link = '2', m.target()
	case n < 77:
		names := m.existing(fs.FileMode.IsDir, false)
		if len(names) == 0 {
			return nil
		}
		e.kind, e.link = '1', pick(m.r, names...)
		var to unix.Stat_t
		if err := unix.Lstat("/"+e.link, &to); err != nil {
			return err
		}
		if e.link == at || strings.HasPrefix(e.link, at+"/") {
			return nil
		}
		e.mode, e.uid, e.gid, e.mtime, e.xattrs = to.Mode&0o7777, to.Uid, to.Gid, to.Mtim, nil
	case n < 90:
		if isDir && m.u.has[st.Ino] {
			return nil
		}
		e.kind, e.name = '0', strings.TrimPrefix(dir+"/.wh."+base, "/")
	case n < 95:
		for _, d := range m.existing(fs.FileMode.IsDir, true) {
			if m.given[d] && (real == "" || strings.HasPrefix(d, real+"/")) {
				return nil
			}
		}
		e.kind, e.name = '0', strings.TrimPrefix(dir+"/.wh..wh..opq", "/")
	default:
		e.kind = pick(m.r, byte('3'), '4', '6')
	}
	if e.kind != '5' && !strings.Contains(e.name, ".wh.") {
		for d := range m.given {
			if d == at || strings.HasPrefix(d, at+"/") {
				delete(m.given, d)
			}
		}
	}
	m.add(m.legal(e))
	return nil
}

// above lists a directory and those that lead to it, the root first.
func above(dir string) []string {
	all := []string{""}
	for i := range dir {
		if dir[i] == '/' {
			all = append(all, dir[:i])
		}
	}
	if dir != "" {
		all = append(all, dir)
	}
	return all
}

// realDir is the path of a directory without symlinks.
func (m *stackMaker) realDir(dir string) (string, error) {
	if err := unix.Chdir("/" + dir); err != nil {
		return "", err
	}
	b := make([]byte, 4096)
	n, err := unix.Getcwd(b)
	if err != nil {
		return "", err
	}
	return strings.Trim(string(b[:n]), "/\x00"), nil
}

// existing lists the names there are that are, or are not, of a kind. Of directories also those that are reached through
// symlinks.
func (m *stackMaker) existing(kind func(fs.FileMode) bool, is bool) []string {
	var names []string
	fs.WalkDir(os.DirFS("/"), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == "." {
			return err
		}
		if kind(d.Type()) == is {
			names = append(names, p)
		} else if st, err := os.Stat("/" + p); is && err == nil && kind(st.Mode()) {
			names = append(names, p)
		}
		return nil
	})
	return names
}

func (m *stackMaker) target() string {
	switch m.r.IntN(8) {
	case 0:
		return pick(m.r, ".", "..", "../..", "/", "../../../..")
	case 1:
		return "/" + m.path()
	case 2:
		return "../" + m.path()
	case 3:
		return "./" + m.path() + "/"
	}
	return m.path()
}

func (m *stackMaker) file(e entry) entry {
	e.kind = '0'
	if m.one(6) {
		e.sparse = pick(m.r, sparseGNU, sparsePAX00, sparsePAX01, sparsePAX10)
		for range m.r.IntN(8) * m.r.IntN(5) {
			off := e.content.size + int64(m.r.IntN(20)*blockSize)
			p := part{off, m.random(blockSize * (1 + m.r.IntN(10)))}
			e.content.parts = append(e.content.parts, p)
			e.content.size = off + int64(len(p.b)) + blockSize
		}
		e.content.size += int64(m.r.IntN(100000))
		return e
	}
	size := pick(m.r, 0, 1, 10, 511, 512, 4095, 4096, 4097, 8192, 12345, 70000)
	if m.one(4) {
		e.content = whole([]byte(strings.Repeat(m.name(), size)[:size])) // others have the same
	} else {
		e.content = whole(m.random(size))
	}
	return e
}

func (m *stackMaker) random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(m.r.Uint32())
	}
	return b
}

func (m *stackMaker) attributes(e entry) entry {
	e.mode = pick(m.r, 0o644, 0o755, 0o600, 0, 0o7777, 0o4755, 0o2755, 0o1777, uint32(m.r.IntN(0o10000)))
	e.uid, e.gid = m.id(), m.id()
	e.mtime = unix.Timespec{Sec: pick(m.r, 0, 1, -1, 1700000000, 1<<31-1, 1<<31, 1<<32, -300000000, m.r.Int64N(1<<33))}
	if m.one(3) && e.mtime.Sec != 0 { // in that second the estargz package rounds either way
		e.mtime.Nsec = pick(m.r, 1, 999999999, 500000000, m.r.Int64N(1e9))
	}
	e.major, e.minor = pick[uint32](m.r, 0, 1, 8, 255, 4095), pick[uint32](m.r, 0, 3, 255, 256, 1<<20-1)
	e.dialect = pick(m.r, pax, pax, gnu, ustar, v7)
	if m.one(4) {
		e.xattrs = map[string]string{}
		for _, k := range []string{"user.a", "user.mime_type", "trusted.t", "security.capability", "user." + strings.Repeat("k", 100)} {
			if m.one(2) {
				e.xattrs[k] = string(m.random(m.r.IntN(30)))
				if m.stack.tame && e.xattrs[k] == "" {
					e.xattrs[k] = "\x00"
				}
			}
		}
		if m.one(2) {
			e.xattrs["system.posix_acl_access"] = ""
		}
	}
	return e
}

func (m *stackMaker) id() uint32 {
	return pick[uint32](m.r, 0, 0, 1, 1000, 65534, 65536, 1<<21-1, 1<<21, 1<<31, 1<<32-2)
}

// legal takes from an entry what the kernel, where the unpacker works, doesn't take; and makes attributes that have a format.
func (m *stackMaker) legal(e entry) entry {
	maps.DeleteFunc(e.xattrs, func(k, _ string) bool {
		switch {
		case strings.HasPrefix(k, "trusted."):
			return false
		case strings.HasPrefix(k, "user."):
			return e.kind != '0' && e.kind != '5'
		case k == "security.capability":
			return e.kind != '0'
		}
		return e.kind != '5' // a link would change the mode behind an access control list's back
	})
	for k := range e.xattrs {
		switch k {
		case "security.capability":
			b := binary.LittleEndian.AppendUint32(nil, 0x02000001) // version 2, effective
			e.xattrs[k] = string(append(binary.LittleEndian.AppendUint32(b, 1<<m.r.IntN(30)), make([]byte, 12)...))
		case "system.posix_acl_access":
			b := binary.LittleEndian.AppendUint32(nil, 2)
			for _, a := range [][3]uint32{{1, e.mode >> 6 & 7, 1<<32 - 1}, {2, 7, 1000}, {4, 5, 1<<32 - 1}, {16, e.mode >> 3 & 7, 1<<32 - 1}, {32, e.mode & 7, 1<<32 - 1}} {
				b = binary.LittleEndian.AppendUint16(b, uint16(a[0]))
				b = binary.LittleEndian.AppendUint16(b, uint16(a[1]))
				b = binary.LittleEndian.AppendUint32(b, a[2])
			}
			e.xattrs[k] = string(b)
		}
	}
	if len(components(e.name)) > 0 && e.kind == '2' && e.link == "" {
		e.link = "."
	}
	if slices.Contains([]byte("126"), e.kind) {
		e.major, e.minor = 0, 0
	}
	return e
}
