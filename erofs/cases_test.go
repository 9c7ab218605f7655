package erofs_test

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/pexfs/pex/lazy/tree"
)

// imageCase is a tree that is tried with every reader there is.
type imageCase struct {
	name   string
	layers [][]tree.Entry
}

func dir(name string, mode uint32) tree.Entry {
	return tree.Entry{Name: name, Type: tree.Dir, Mode: mode, Mtime: tree.Time{Sec: 1_700_000_000, Nsec: 5}}
}

func reg(name string, size int64, content int32) tree.Entry {
	return tree.Entry{Name: name, Type: tree.Regular, Mode: 0o644, Size: size, Content: content, Mtime: tree.Time{Sec: 1_600_000_000, Nsec: 999_999_999}}
}

func link(name, target string) tree.Entry {
	return tree.Entry{Name: name, Type: tree.Symlink, Mode: 0o777, Linkname: target}
}

func hard(name, target string) tree.Entry {
	return tree.Entry{Name: name, Type: tree.HardLink, Mode: 0o644, Linkname: target}
}

func with(e tree.Entry, xs ...tree.Xattr) tree.Entry {
	e.Xattrs = xs
	return e
}

// posixACL is an ACL in the form of system.posix_acl_*: one named user beside the three of a mode.
func posixACL(user uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 6, ^uint32(0)}, {2, 7, user}, {4, 4, ^uint32(0)}, {0x10, 7, ^uint32(0)}, {0x20, 4, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// capability is a security.capability of version 2: CAP_NET_RAW, permitted and effective.
func capability() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	for _, v := range []uint32{1 << 13, 0, 0, 0} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

func imageCases() []imageCase {
	one := func(name string, entries ...tree.Entry) imageCase { return imageCase{name, [][]tree.Entry{entries}} }
	cases := []imageCase{
		one("empty tree"),
		one("root's own attributes", with(tree.Entry{Name: ".", Type: tree.Dir, Mode: 0o1777, UID: 7, GID: 8, Mtime: tree.Time{Sec: 1, Nsec: 2}}, tree.Xattr{Name: "user.r", Value: []byte("v")})),
		one("special files",
			tree.Entry{Name: "c", Type: tree.Char, Mode: 0o600, Major: 1, Minor: 3},
			tree.Entry{Name: "c-max", Type: tree.Char, Mode: 0o600, Major: 0xfff, Minor: 0xfffff},
			tree.Entry{Name: "c-zero", Type: tree.Char, Mode: 0},
			tree.Entry{Name: "b", Type: tree.Block, Mode: 0o660, Major: 259, Minor: 70000},
			with(tree.Entry{Name: "p", Type: tree.Fifo, Mode: 0o644}, tree.Xattr{Name: "trusted.p", Value: []byte{0}}),
		),
		one("modes, owners and times",
			tree.Entry{Name: "setuid-dir", Type: tree.Dir, Mode: 0o7755},
			tree.Entry{Name: "setuid-dir/setuid", Type: tree.Regular, Mode: 0o6755, UID: 1<<21 + 1, GID: 1<<32 - 2},
			tree.Entry{Name: "none", Type: tree.Regular, Mode: 0},
			tree.Entry{Name: "before-1970", Type: tree.Regular, Mode: 0o444, Mtime: tree.Time{Sec: -1, Nsec: 1}},
			tree.Entry{Name: "long-before", Type: tree.Regular, Mtime: tree.Time{Sec: -1 << 40, Nsec: 999_999_999}},
			tree.Entry{Name: "later", Type: tree.Regular, Mtime: tree.Time{Sec: 1 << 35, Nsec: 123}},
		),
		one("hard links",
			dir("a", 0o755), dir("b/c", 0o755), reg("a/f", 5000, 1), hard("b/c/g", "a/f"), hard("z", "b/c/g"),
			link("b/l", "../a/f"), hard("a/l2", "b/l"),
			tree.Entry{Name: "n", Type: tree.Char, Major: 1, Minor: 5}, hard("n2", "n"),
		),
		{"identical contents in several layers", [][]tree.Entry{
			{reg("low", 10_000, 1), reg("hidden", 3*mib, 2), reg("both", 4096, 3), reg("big-low", 2*mib, 5)},
			{reg("hidden", 17, 7), reg("up", 10_000, 1), reg("again", 10_000, 1001), reg("big-up", 2*mib, 5)},
			{reg("empty", 0, 9), reg("one", 1, 10), reg("exact", 8192, 11)},
		}},
		one("big contents", reg("a", 2*mib, 1), reg("b", 2*mib-1, 2), reg("c", 2*mib+1, 3), reg("d", 5*mib+77, 4), reg("e", 1, 5)),
		one("more than 4 GiB", reg("huge", 5*gib+123, 1), reg("small", 100, 2), reg("huge2", 4*gib, 3)),
		one("deep", tree.Entry{Name: strings.Repeat("d/", 1000) + "f", Type: tree.Regular, Size: 10, Content: 1}),
	}
	// names: all single bytes but the ones that no name has, and the longest
	names := []tree.Entry{}
	for c := 1; c < 256; c++ {
		if c == '/' {
			continue
		}
		name := string([]byte{byte(c)})
		if name != "." {
			names = append(names, reg("one/"+name, 0, 0))
		}
		names = append(names, dir("two/"+name+"x", 0o755), reg("long/"+strings.Repeat(name, 250)+"!+-.~", int64(c), int32(c)))
	}
	names = append(names, reg("dots/...", 0, 0), reg("dots/.a", 0, 0), reg("dots/..a", 0, 0), reg("dots/.-", 0, 0), reg("dots/..-", 0, 0), reg("dots/-", 0, 0))
	cases = append(cases, one("names", names...))

	var wide []tree.Entry
	for i := range 20_000 {
		wide = append(wide, reg(fmt.Sprintf("wide/%c%d-%s", " !+-.09az~"[i%10], i, strings.Repeat("n", i%60)), int64(i%3), int32(i%3)))
	}
	cases = append(cases, one("directory of 20,000", wide...))

	// every size of a symlink, of which some have attributes that leave the target too little room
	var links []tree.Entry
	for n := 1; n <= 4095; n++ {
		e := link(fmt.Sprintf("links/%04d", n), strings.Repeat("abcdefg/", 512)[:n])
		switch n % 4 {
		case 1:
			e = with(e, tree.Xattr{Name: "trusted.t", Value: make([]byte, n/2)})
		case 3:
			e = with(e, tree.Xattr{Name: "security.s", Value: []byte("label")})
		}
		links = append(links, e)
	}
	cases = append(cases, one("symlinks of all sizes", links...))

	// directories whose last blocks are of many sizes, with attributes
	var tails []tree.Entry
	for n := 1; n <= 400; n++ {
		d := fmt.Sprintf("tails/%03d", n)
		e := dir(d, 0o755)
		if n%3 == 0 {
			e = with(e, tree.Xattr{Name: "user.t", Value: make([]byte, n*13)})
		}
		tails = append(tails, e)
		for left := n*41 + 1; left > 0; left -= 212 {
			tails = append(tails, reg(fmt.Sprintf("%s/%04d%s", d, left, strings.Repeat("t", min(left, 195))), 0, 0))
		}
	}
	cases = append(cases, one("directories with tails of many sizes", tails...))

	big := make([]byte, 60_000)
	for i := range big {
		big[i] = byte(i * 7)
	}
	xattrs := []tree.Entry{
		with(dir("d", 0o755), tree.Xattr{Name: "system.posix_acl_access", Value: posixACL(1000)}, tree.Xattr{Name: "system.posix_acl_default", Value: posixACL(70000)}, tree.Xattr{Name: "user.x", Value: nil}),
		with(reg("d/f", 10, 1), tree.Xattr{Name: "security.capability", Value: capability()}, tree.Xattr{Name: "user." + strings.Repeat("n", 250), Value: []byte("long name")}, tree.Xattr{Name: "trusted.t", Value: []byte{0, 1, 2}}),
		with(reg("d/acl", 10, 2), tree.Xattr{Name: "system.posix_acl_access", Value: posixACL(1)}),
		with(reg("big", 4097, 3), tree.Xattr{Name: "user.big", Value: big}),
		with(link("l", "target"), tree.Xattr{Name: "trusted.overlay-like", Value: []byte("kept")}),
		with(dir("dropped", 0o755), tree.Xattr{Name: "system.other", Value: []byte("x")}, tree.Xattr{Name: "foo.bar", Value: []byte("x")}, tree.Xattr{Name: "user.", Value: []byte("x")}, tree.Xattr{Name: "user.kept", Value: []byte("y")}),
	}
	for n := range 300 {
		xattrs = append(xattrs, with(reg(fmt.Sprintf("s/%03d", n), 1, int32(500+n)), tree.Xattr{Name: "user.a", Value: big[:n*17]}, tree.Xattr{Name: "user.b", Value: big[:n%5]}))
	}
	return append(cases, one("attributes", xattrs...))
}
