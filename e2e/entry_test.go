package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// entry is what a layer says of one name, as a test means it.
type entry struct {
	name, link   string
	kind         byte // tar's type flag: file 0, hard link 1, symlink 2, devices 3 and 4, directory 5, fifo 6; g is a global header
	mode         uint32
	uid, gid     uint32
	mtime        unix.Timespec
	major, minor uint32
	xattrs       map[string]string
	content      content
	dialect      dialect
	sparse       sparse
}

// content is a file's bytes: zeros but for its parts, which are in order and don't overlap.
type content struct {
	size  int64
	parts []part
}

type part struct {
	off int64
	b   []byte
}

func whole(b []byte) content {
	if len(b) == 0 {
		return content{}
	}
	return content{int64(len(b)), []part{{0, b}}}
}

func (c content) bytes() []byte {
	b := make([]byte, c.size)
	for _, p := range c.parts {
		copy(b[p.off:], p.b)
	}
	return b
}

func (e entry) String() string {
	s := fmt.Sprintf("%c %.300q mode %o owner %d:%d mtime %d.%09d", e.kind, e.name, e.mode, e.uid, e.gid, e.mtime.Sec, e.mtime.Nsec)
	switch e.kind {
	case '0':
		s += fmt.Sprintf(" size %d", e.content.size)
		if e.sparse != dense {
			s += fmt.Sprintf(" sparse %d in %d parts", e.sparse, len(e.content.parts))
		}
	case '1', '2':
		s += fmt.Sprintf(" -> %.300q", e.link)
	case '3', '4':
		s += fmt.Sprintf(" device %d:%d", e.major, e.minor)
	}
	for _, k := range slices.Sorted(maps.Keys(e.xattrs)) {
		s += fmt.Sprintf(" %s=%x", k, e.xattrs[k])
	}
	return s + fmt.Sprintf(" (%s)", e.dialect)
}

// describe prints layers for someone who has to find out why a merge went wrong.
func describe(layers [][]entry) string {
	var b strings.Builder
	for i, l := range layers {
		fmt.Fprintf(&b, "layer %d\n", i)
		for _, e := range l {
			fmt.Fprintf(&b, "  %s\n", e)
		}
	}
	return b.String()
}
