package compress

import (
	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/disk"
)

// dirSize adds up a directory's size: full blocks, and the used part of the last one.
type dirSize struct{ full, used int64 }

// add takes a name, and tells whether it begins a block that is not the first.
func (s *dirSize) add(name string) (next bool) {
	need := int64(disk.DirentSize + len(name))
	if next = s.used+need > blockSize; next {
		s.full, s.used = s.full+blockSize, 0
	}
	s.used += need
	return next
}

// eachBlock calls f for a directory's blocks; of the last one, for what is used of it. They are valid only during the call.
func (t *transfer) eachBlock(dir int32, f func(b []byte, last bool) error) error {
	in, err := t.im.Inode(t.nodes[dir].nid)
	if err != nil {
		return err
	}
	var (
		size    dirSize
		entries []disk.Dirent // NameOff is counted from the first name
		names   []byte
		buf     [blockSize]byte
	)
	flush := func(last bool) error {
		clear(buf[:])
		base := len(entries) * disk.DirentSize
		for i, e := range entries {
			e.NameOff += uint16(base)
			e.Encode(buf[i*disk.DirentSize:])
		}
		n := base + copy(buf[base:], names)
		entries, names = entries[:0], names[:0]
		if !last {
			n = blockSize
		}
		return f(buf[:n], last)
	}
	var bad error
	err = t.im.ReadDir(in, 0, func(d erofs.Dirent) bool {
		if size.add(string(d.Name)) {
			bad = flush(false)
		}
		i := dir
		switch string(d.Name) {
		case ".":
		case "..":
			i = t.nodes[dir].parent
		default:
			i = t.byNid[d.Nid]
		}
		entries = append(entries, disk.Dirent{Nid: uint64(t.nodes[i].to), NameOff: uint16(len(names)), Type: t.nodes[i].kind})
		names = append(names, d.Name...)
		return bad == nil
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return err
	}
	return flush(true)
}
