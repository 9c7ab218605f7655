package erofs_test

import (
	"crypto/sha256"
	"fmt"
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
