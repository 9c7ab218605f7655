package erofs_test

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/disk"
)

// labels names what each byte of the metadata is.
func labels(t *testing.T, s *sparse) []string {
	t.Helper()
	all := make([]string, len(s.meta))
	set := func(at int64, what string, n int64) {
		for i := range n {
			if all[at+i] != "" {
				t.Fatalf("byte %d is of %s and %s", at+i, all[at+i], what)
			}
			all[at+i] = what
		}
	}
	im := s.open(t)
	seen := make(map[uint64]bool)
	for todo := []uint64{im.Super().RootNid}; len(todo) > 0; todo = todo[1:] {
		nid := todo[0]
		if seen[nid] {
			continue
		}
		seen[nid] = true
		in, err := im.Inode(nid)
		if err != nil {
			t.Fatal(err)
		}
		at := int64(nid) * disk.SlotSize
		var d disk.Inode
		d.Decode(s.meta[at:])
		kind := map[uint32]string{0o100000: "file", 0o040000: "directory", 0o120000: "symlink", 0o020000: "device", 0o010000: "fifo"}[in.Mode&0o170000]
		for _, f := range []struct {
			name string
			size int64
		}{
			{"format", 2}, {"count of attributes", 2}, {"mode", 2}, {"reserved bytes", 2}, {kind + "'s size", 8}, {kind + "'s start or number", 4}, {"i_ino", 4},
			{"uid", 4}, {"gid", 4}, {"mtime", 8}, {"mtime's nanoseconds", 4}, {"nlink", 4}, {"reserved bytes", 16},
		} {
			set(at, f.name, f.size)
			at += f.size
		}
		if end := at + d.XattrLen(); end > at {
			set(at, "attributes' header", disk.XattrHeaderSize)
			for at += disk.XattrHeaderSize; at < end; {
				var x disk.XattrEntry
				x.Decode(s.meta[at:])
				set(at, "attribute's head", disk.XattrEntrySize)
				name, value := int64(x.NameLen), int64(x.ValueLen)
				set(at+disk.XattrEntrySize, "attribute's name", name)
				set(at+disk.XattrEntrySize+name, "attribute's value", value)
				at += int64(x.Len())
			}
		}
		if in.IsRegular() && d.Layout != disk.LayoutPlain {
			n, what := in.Size%disk.BlockSize, "content"
			if d.Layout != disk.LayoutInline { // a header, and an entry for each block
				end := at
				at = disk.MapOffset(at)
				n, what = disk.FullIndexOffset(end)-at+(in.Size+disk.BlockSize-1)/disk.BlockSize*disk.FullEntrySize, "compressed content's map"
			}
			set(at, what, n)
		}
		// data that is in the metadata: what is behind the inode, and blocks elsewhere
		place := func(off int64) int64 {
			if d.Layout == disk.LayoutInline && off >= in.Size-in.Size%disk.BlockSize {
				return at
			}
			return int64(d.Union)*disk.BlockSize - s.metaOff + off
		}
		switch {
		case in.IsSymlink():
			set(place(0), "symlink's target", in.Size)
		case in.IsDir():
			for off := int64(0); off < in.Size; off += disk.BlockSize {
				b := s.meta[place(off):][:min(disk.BlockSize, in.Size-off)]
				var e disk.Dirent
				e.Decode(b)
				names := int64(e.NameOff)
				for i := int64(0); i < names; i += disk.DirentSize {
					e.Decode(b[i:])
					todo = append(todo, e.Nid)
					set(place(off)+i, "name's nid", 8)
					set(place(off)+i+8, "name's offset", 2)
					set(place(off)+i+10, "name's type", 1)
					set(place(off)+i+11, "reserved bytes", 1)
				}
				used := len(bytes.TrimRight(b[names:], "\x00"))
				if int(names)+used < disk.BlockSize && len(b) == disk.BlockSize {
					used++ // the zero that ends the last name in a full block
				}
				set(place(off)+names, "name", int64(used))
			}
		}
	}
	for i := range all {
		all[i] = cmp.Or(all[i], "unused bytes")
	}
	return all
}

// free tells what Check cannot know to be wrong: any value, or many, would be right in some image.
func free() map[string]bool {
	return map[string]bool{
		"mode": true, "uid": true, "gid": true, "mtime": true, "mtime's nanoseconds": true, "file's size": true, "file's start or number": true,
		"device's start or number": true, "name's offset": true, "symlink's target": true, "name": true, "attribute's name": true, "attribute's value": true,
		"attribute's head": true, // it has a prefix's number, for the name
		"UUID":             true,
		"content":          true,
	}
}

// see reads all that an image shows, as text. It gives up on images of more than a thousand names. Of contents it reads those that are
// compressed, and tells where the others are.
func see(r io.ReaderAt, size int64) (string, error) {
	im, err := erofs.Open(r, size)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%+v\n", im.Super())
	steps := 0
	for todo := []uint64{im.Super().RootNid}; len(todo) > 0; todo = todo[1:] {
		in, err := im.Inode(todo[0])
		if err != nil {
			return "", err
		}
		if err := seeInode(&out, im, in, size); err != nil {
			return "", err
		}
		if !in.IsDir() {
			continue
		}
		if _, err := im.Lookup(in, "no such name"); !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		var names []string
		err = im.ReadDir(in, 0, func(d erofs.Dirent) bool {
			fmt.Fprintf(&out, "\t%q %d %d\n", d.Name, d.Nid, d.Type)
			names = append(names, string(d.Name))
			if n := string(d.Name); n != "." && n != ".." {
				todo = append(todo, d.Nid)
			}
			steps++
			return steps < 1000
		})
		if err != nil {
			return "", err
		}
		for _, n := range names {
			if _, err := im.Lookup(in, n); err != nil {
				return "", fmt.Errorf("looking up %q: %w", n, err)
			}
		}
		if steps >= 1000 {
			return "", errors.New("too many names")
		}
	}
	return out.String(), nil
}

// seeInode reads an inode, its attributes and what is behind them, but for a directory's names.
func seeInode(out io.Writer, im *erofs.Image, in erofs.Inode, size int64) error {
	xs, err := im.Xattrs(in)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d %#o %d:%d %d %d %d.%d %d %q\n", in.Nid, in.Mode, in.UID, in.GID, in.Nlink, in.Size, in.Mtime, in.MtimeNsec, in.Rdev, xs)
	for _, x := range xs {
		if v, err := im.Xattr(in, x.Name); err != nil || !bytes.Equal(v, x.Value) {
			return fmt.Errorf("attribute %q: %q or %q, %w", x.Name, x.Value, v, err)
		}
	}
	switch {
	case in.IsRegular():
		off, err := im.DataOff(in)
		if im.Super().Compressed && errors.Is(err, erofs.ErrUnsupported) {
			b := make([]byte, min(in.Size, mib))
			n, err := im.ReadFileAt(in, b, 0)
			if err != nil && err != io.EOF {
				return err
			}
			fmt.Fprintf(out, "\tof %d bytes, %x\n", n, sha256.Sum256(b[:n]))
			break
		}
		if err != nil {
			return err
		}
		if off < 0 || in.Size < 0 || off > size-in.Size {
			return fmt.Errorf("a content at %d+%d of %d", off, in.Size, size)
		}
		fmt.Fprintf(out, "\tat %d\n", off)
	case in.IsSymlink():
		target, err := im.Readlink(in)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "\tto %q\n", target)
	}
	return nil
}
