package erofs

import (
	"encoding/binary"
	"fmt"

	"github.com/pexfs/pex/erofs/disk"
)

// Xattr is an extended attribute; its name has its namespace.
type Xattr struct {
	Name  string
	Value []byte
}

// eachXattr calls f for each attribute of an inode until it returns false. Value is valid only during the call.
func (im *Image) eachXattr(in Inode, f func(index uint8, name, value []byte) bool) error {
	if in.xattrs == 0 {
		return nil
	}
	b := make([]byte, in.xattrs) // 256 KiB at most, by the count's size
	if err := im.read(b, in.head); err != nil {
		return fmt.Errorf("reading attributes of inode %d: %w", in.Nid, err)
	}
	if b[4] != 0 {
		return fmt.Errorf("inode %d: %w: shared attributes", in.Nid, ErrUnsupported)
	}
	for b = b[disk.XattrHeaderSize:]; len(b) >= disk.XattrEntrySize; {
		nameLen, index, valueLen := int(b[0]), b[1], int(binary.LittleEndian.Uint16(b[2:]))
		n := disk.XattrEntrySize + nameLen + valueLen
		padded := (n + disk.XattrEntrySize - 1) / disk.XattrEntrySize * disk.XattrEntrySize
		if n > len(b) || padded > len(b) {
			return fmt.Errorf("%w: attributes of inode %d", ErrInvalid, in.Nid)
		}
		if !f(index, b[disk.XattrEntrySize:][:nameLen], b[disk.XattrEntrySize+nameLen:][:valueLen]) {
			return nil
		}
		b = b[padded:]
	}
	return nil
}

func xattrName(index uint8, rest []byte) (string, bool) {
	for _, p := range xattrPrefixes {
		if p.index == index && p.whole == (len(rest) == 0) {
			return p.name + string(rest), true
		}
	}
	return "", false
}

// Xattrs lists an inode's attributes.
func (im *Image) Xattrs(in Inode) ([]Xattr, error) {
	var all []Xattr
	err := im.eachXattr(in, func(index uint8, name, value []byte) bool {
		if n, ok := xattrName(index, name); ok {
			all = append(all, Xattr{n, append([]byte{}, value...)})
		}
		return true
	})
	return all, err
}

// Xattr reads one attribute, or gives ErrNoXattr.
func (im *Image) Xattr(in Inode, name string) ([]byte, error) {
	wantIndex, want, ok := splitXattr(name)
	if !ok || in.xattrs == 0 {
		return nil, ErrNoXattr
	}
	var got []byte
	err := im.eachXattr(in, func(index uint8, name, value []byte) bool {
		if index == wantIndex && string(name) == want {
			got = append([]byte{}, value...)
			return false
		}
		return true
	})
	if err == nil && got == nil {
		err = ErrNoXattr
	}
	return got, err
}
