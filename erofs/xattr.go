package erofs

import (
	"fmt"

	"github.com/pexfs/pex/erofs/disk"
)

// Xattr is an extended attribute; its name has its namespace.
type Xattr struct {
	Name  string
	Value []byte
}

// Xattrs lists an inode's attributes. Those whose prefix has no name are left out, as Linux does.
func (im *Image) Xattrs(in Inode) ([]Xattr, error) {
	var all []Xattr
	err := im.eachXattr(in, func(index uint8, rest, value []byte) bool {
		if name, ok := joinXattr(index, rest); ok {
			all = append(all, Xattr{name, append([]byte{}, value...)})
		}
		return true
	})
	return all, err
}

// Xattr reads one attribute. The error is ErrNoXattr where there is none of that name.
func (im *Image) Xattr(in Inode, name string) ([]byte, error) {
	index, rest, ok := splitXattr(name)
	if !ok || in.xattrs == 0 {
		return nil, ErrNoXattr
	}
	var got []byte
	err := im.eachXattr(in, func(i uint8, r, value []byte) bool {
		if i == index && string(r) == rest {
			got = append([]byte{}, value...)
		}
		return got == nil
	})
	if err == nil && got == nil {
		err = ErrNoXattr
	}
	return got, err
}

// eachXattr calls f for each attribute of an inode until it returns false. What f gets is valid only during the call.
func (im *Image) eachXattr(in Inode, f func(index uint8, rest, value []byte) bool) error {
	if in.xattrs == 0 {
		return nil
	}
	buf := blockPool.Get().(*[blockSize]byte)
	defer blockPool.Put(buf)
	b := buf[:]
	if in.xattrs > blockSize {
		b = make([]byte, in.xattrs) // 256 KiB at most: their number has 16 bits
	}
	b = b[:in.xattrs]
	if err := im.read(b, in.head); err != nil {
		return fmt.Errorf("reading attributes of inode %d: %w", in.Nid, err)
	}
	if b[4] != 0 {
		return fmt.Errorf("inode %d: %w: shared attributes", in.Nid, ErrUnsupported)
	}
	for b = b[disk.XattrHeaderSize:]; len(b) > 0; {
		var e disk.XattrEntry
		e.Decode(b)
		if e.Len() > len(b) {
			return fmt.Errorf("%w: attributes of inode %d", ErrInvalid, in.Nid)
		}
		rest := b[disk.XattrEntrySize:][:e.NameLen]
		value := b[disk.XattrEntrySize+int(e.NameLen):][:e.ValueLen]
		if !f(e.Index, rest, value) {
			return nil
		}
		b = b[e.Len():]
	}
	return nil
}
