package erofs_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/tree"
)

// An image is laid out and its metadata written while contents are still unknown; then they are put where they belong.
func Example() {
	contents := []string{"Hello, world.\n"}
	b := tree.NewBuilder(tree.Options{})
	err := b.AddLayer(func(yield func(tree.Entry, error) bool) {
		yield(tree.Entry{Name: "etc/motd", Type: tree.Regular, Mode: 0o644, Size: int64(len(contents[0])), Content: 0}, nil)
	})
	if err != nil {
		log.Fatal(err)
	}
	t, err := b.Build()
	if err != nil {
		log.Fatal(err)
	}
	l, err := erofs.NewLayout(t, func(c tree.Content) [32]byte { return sha256.Sum256([]byte(contents[c.Index])) }, [16]byte{})
	if err != nil {
		log.Fatal(err)
	}
	f, err := os.CreateTemp("", "*.erofs")
	if err != nil {
		log.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := f.Truncate(l.Size()); err != nil {
		log.Fatal(err)
	}
	if err := l.WriteTo(f); err != nil {
		log.Fatal(err)
	}

	// The image can be mounted and read from here on.
	im, err := erofs.Open(f, l.Size())
	if err != nil {
		log.Fatal(err)
	}
	in, err := im.Inode(im.Super().RootNid)
	for _, name := range []string{"etc", "motd"} {
		var nid uint64
		if err == nil {
			nid, err = im.Lookup(in, name)
		}
		if err == nil {
			in, err = im.Inode(nid)
		}
	}
	if err != nil {
		log.Fatal(err)
	}
	off, err := im.DataOff(in)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%#o, %d bytes at %d\n", in.Mode, in.Size, off)

	for _, e := range l.Extents() {
		if _, err := f.WriteAt([]byte(contents[e.Content.Index]), e.Off); err != nil {
			log.Fatal(err)
		}
	}
	data := make([]byte, in.Size)
	if _, err := f.ReadAt(data, off); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", data)
	// Output:
	// 0100644, 14 bytes at 2097152
	// Hello, world.
}

// small makes an image, with its contents, in memory.
func small() *bytes.Reader {
	motd, owner := []byte("Hello, world.\n"), tree.Xattr{Name: "user.owner", Value: []byte("docs")}
	b := tree.NewBuilder(tree.Options{})
	err := b.AddLayer(func(yield func(tree.Entry, error) bool) {
		_ = yield(tree.Entry{Name: "etc/motd", Type: tree.Regular, Mode: 0o640, GID: 4, Size: int64(len(motd)), Xattrs: []tree.Xattr{owner}}, nil) &&
			yield(tree.Entry{Name: "motd", Type: tree.Symlink, Mode: 0o777, Linkname: "/etc/motd"}, nil) &&
			yield(tree.Entry{Name: "null", Type: tree.Char, Mode: 0o666, Major: 1, Minor: 3}, nil)
	})
	if err != nil {
		log.Fatal(err)
	}
	t, err := b.Build()
	if err != nil {
		log.Fatal(err)
	}
	l, err := erofs.NewLayout(t, func(tree.Content) [32]byte { return sha256.Sum256(motd) }, [16]byte{})
	if err != nil {
		log.Fatal(err)
	}
	image := make(memory, l.Size())
	if err := l.WriteTo(image); err != nil {
		log.Fatal(err)
	}
	copy(image[l.Extents()[0].Off:], motd)
	return bytes.NewReader(image)
}

// memory is an io.WriterAt.
type memory []byte

func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

// An image is a tree for everything that takes an fs.FS. What io/fs has no word for is in an Inode, and attributes are beside it.
func ExampleImage_FS() {
	r := small()
	im, err := erofs.Open(r, r.Size())
	if err != nil {
		log.Fatal(err)
	}
	fsys := im.FS()
	err = fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		in := info.Sys().(*erofs.Inode)
		major, minor := in.Device()
		fmt.Println(info.Mode(), in.UID, in.GID, in.Nlink, major, minor, name)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}

	f, err := fsys.Open("motd") // a symlink, which is followed
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 5)
	if _, err := f.(io.ReaderAt).ReadAt(p, 7); err != nil {
		log.Fatal(err)
	}
	xs, err := fsys.Xattrs("motd")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, %s=%s\n", p, xs[0].Name, xs[0].Value)
	// Output:
	// drwxr-xr-x 0 0 3 0 0 .
	// drwxr-xr-x 0 0 2 0 0 etc
	// -rw-r----- 0 4 1 0 0 etc/motd
	// Lrwxrwxrwx 0 0 1 0 0 motd
	// Dcrw-rw-rw- 0 0 1 1 3 null
	// world, user.owner=docs
}

// An image of unknown origin is checked before a kernel mounts it.
func ExampleCheck() {
	r := small()
	fmt.Println(erofs.Check(r, r.Size()))

	image, err := io.ReadAll(r)
	if err != nil {
		log.Fatal(err)
	}
	image[1024] ^= 1 // the superblock's first byte
	fmt.Println(erofs.Check(bytes.NewReader(image), int64(len(image))))
	// Output:
	// <nil>
	// invalid EROFS image: magic 0xe0f5e1e3
}
