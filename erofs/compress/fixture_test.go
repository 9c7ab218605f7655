package compress_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/compress"
	"github.com/pexfs/pex/lazy/tree"
)

// file is a regular file of a test's tree. Files of equal contents share them.
type file struct {
	name string
	b    []byte
}

// text is what shrinks: words.
func text(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "line %d of %s\n", r.IntN(5000), strings.Repeat("word ", r.IntN(9)))
	}
	return b.Bytes()[:n]
}

// noise is what doesn't.
func noise(n int, seed uint64) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 24), seed)
	out := make([]byte, n)
	if _, err := rand.NewChaCha8([32]byte(b)).Read(out); err != nil {
		panic(err)
	}
	return out
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// plain makes an image of layout version 1 of files, and of other entries, in a file.
func plain(t testing.TB, files []file, others ...tree.Entry) (*os.File, int64) {
	t.Helper()
	var entries []tree.Entry
	contents := map[int32][]byte{}
	known := map[string]int32{}
	for _, f := range files {
		k, ok := known[string(f.b)]
		if !ok {
			k = int32(len(known))
			known[string(f.b)], contents[k] = k, f.b
		}
		entries = append(entries, tree.Entry{Name: f.name, Type: tree.Regular, Mode: 0o644, Size: int64(len(f.b)), Content: k, Mtime: tree.Time{Sec: 1_600_000_000, Nsec: 7}})
	}
	return layOut(t, append(entries, others...), func(w io.WriterAt, content int32, off int64) error {
		_, err := w.WriteAt(contents[content], off)
		return err
	})
}

// layOut makes an image of layout version 1 in a file. It calls write for each content, where that goes.
func layOut(t testing.TB, entries []tree.Entry, write func(w io.WriterAt, content int32, off int64) error) (*os.File, int64) {
	t.Helper()
	b := tree.NewBuilder(tree.Options{})
	err := b.AddLayer(func(yield func(tree.Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	tr, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	key := func(c tree.Content) (k [32]byte) {
		binary.BigEndian.PutUint32(k[:], uint32(c.Index))
		return k
	}
	l, err := erofs.NewLayout(tr, key, [16]byte{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "plain"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(l.Size()); err != nil {
		t.Fatal(err)
	}
	if err := l.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	for _, e := range l.Extents() {
		if err := write(f, e.Content.Index, e.Off); err != nil {
			t.Fatal(err)
		}
	}
	return f, l.Size()
}

func open(t testing.TB, r io.ReaderAt, size int64) *erofs.Image {
	t.Helper()
	im, err := erofs.Open(r, size)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// shrink writes the compressed form of an image to a file.
func shrink(t testing.TB, im *erofs.Image, o compress.Options) (*os.File, int64) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "compressed"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	size, err := compress.Write(context.Background(), f, im, o)
	if err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() != size {
		t.Fatalf("the file has %d bytes, the size given is %d", st.Size(), size)
	}
	return f, size
}

// lookUp finds an inode by its path.
func lookUp(t testing.TB, im *erofs.Image, path string) erofs.Inode {
	t.Helper()
	in, err := im.Inode(im.Super().RootNid)
	for name := range strings.SplitSeq(path, "/") {
		var nid uint64
		if err == nil {
			nid, err = im.Lookup(in, name)
		}
		if err == nil {
			in, err = im.Inode(nid)
		}
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return in
}
