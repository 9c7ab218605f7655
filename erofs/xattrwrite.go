package erofs

import (
	"fmt"
	"io/fs"
	"strings"

	"github.com/pexfs/pex/erofs/disk"
	"github.com/pexfs/pex/lazy/tree"
)

const (
	maxDropped = 100 // attributes left out that are listed by name
	// Attributes of one inode, in bytes, header included. The format has room for four times as much, but Linux lists no more
	// than 64 KiB of names, and old kernels count this in 16 bits.
	maxXattrs = 65532
)

// xattrPrefix is a prefix of attributes' names that the format has a number for. Where whole is set it is the whole name.
type xattrPrefix struct {
	name  string
	index uint8
	whole bool
}

func xattrPrefixes() [5]xattrPrefix {
	return [...]xattrPrefix{
		{"user.", disk.XattrUser, false},
		{"system.posix_acl_access", disk.XattrACLAccess, true},
		{"system.posix_acl_default", disk.XattrACLDefault, true},
		{"trusted.", disk.XattrTrusted, false},
		{"security.", disk.XattrSecurity, false},
	}
}

// splitXattr tells what number a name's prefix has, and what follows the prefix.
func splitXattr(name string) (index uint8, rest string, ok bool) {
	for _, p := range xattrPrefixes() {
		if rest, ok := strings.CutPrefix(name, p.name); ok && p.whole == (rest == "") {
			return p.index, rest, true
		}
	}
	return 0, "", false
}

// joinXattr undoes splitXattr.
func joinXattr(index uint8, rest []byte) (name string, ok bool) {
	for _, p := range xattrPrefixes() {
		if p.index == index && p.whole == (len(rest) == 0) {
			return p.name + string(rest), true
		}
	}
	return "", false
}

// measureXattrs tells how many bytes an inode's attributes take behind it, and takes down those that have no place there.
func (w *writer) measureXattrs(i tree.Ino) (int, error) {
	size := 0
	for name, value := range w.t.Xattrs(i) {
		_, rest, ok := splitXattr(name)
		if !ok {
			if w.dropped < maxDropped {
				w.l.dropped = append(w.l.dropped, fmt.Sprintf("%.4096s: %.300s", w.path(i), name))
			}
			w.dropped++
			continue
		}
		if len(rest) > disk.MaxXattrName || len(value) > disk.MaxXattrValue {
			return 0, fmt.Errorf("attribute %.300q of %d bytes: %w", name, len(value), ErrTooBig)
		}
		if size == 0 {
			size = disk.XattrHeaderSize
		}
		e := disk.XattrEntry{NameLen: uint8(len(rest)), ValueLen: uint16(len(value))}
		if size += e.Len(); size > maxXattrs {
			return 0, fmt.Errorf("attributes of more than %d bytes: %w", maxXattrs, ErrTooBig)
		}
	}
	return size, nil
}

// encodeXattrs writes an inode's attributes, which measureXattrs has measured, to the start of b, which is zero, and tells how many
// bytes they take. Shared attributes there are none.
func (w *writer) encodeXattrs(b []byte, i tree.Ino) int {
	size := 0
	for name, value := range w.t.Xattrs(i) {
		index, rest, ok := splitXattr(name)
		if !ok {
			continue
		}
		if size == 0 {
			size = disk.XattrHeaderSize
		}
		size += encodeXattr(b[size:], index, rest, value)
	}
	return size
}

// EncodeXattrs gives the bytes behind an inode that attributes are, in the order given; none for none. The error wraps ErrTooBig, or
// fs.ErrInvalid where a name has no number in the format.
func EncodeXattrs(xs []Xattr) ([]byte, error) {
	if len(xs) == 0 {
		return nil, nil
	}
	b := make([]byte, disk.XattrHeaderSize)
	for _, x := range xs {
		index, rest, ok := splitXattr(x.Name)
		if !ok {
			return nil, fmt.Errorf("attribute %.300q: %w", x.Name, fs.ErrInvalid)
		}
		e := disk.XattrEntry{NameLen: uint8(len(rest)), ValueLen: uint16(len(x.Value))}
		if len(rest) > disk.MaxXattrName || len(x.Value) > disk.MaxXattrValue || len(b)+e.Len() > maxXattrs {
			return nil, fmt.Errorf("attribute %.300q of %d bytes: %w", x.Name, len(x.Value), ErrTooBig)
		}
		at := len(b)
		b = append(b, make([]byte, e.Len())...)
		encodeXattr(b[at:], index, rest, x.Value)
	}
	return b, nil
}

func encodeXattr[S ~string | ~[]byte](b []byte, index uint8, rest S, value []byte) int {
	e := disk.XattrEntry{NameLen: uint8(len(rest)), Index: index, ValueLen: uint16(len(value))}
	e.Encode(b)
	copy(b[disk.XattrEntrySize:], rest)
	copy(b[disk.XattrEntrySize+len(rest):], value)
	return e.Len()
}
