package e2e

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const gib = 1 << 30

// TestLimits puts what is large or long through the whole of the program: a cold mount, by table of contents and streamed, completing,
// checkers, and the kernel's mount.
func TestLimits(t *testing.T) {
	l := newLab(t)
	for name, layers := range map[string][][]entry{
		"300 layers": manyLayers(300),
		"long names": {longNames()},
	} {
		want := madeOf(t, layers)
		for _, f := range []form{formGzip, formStargz} {
			t.Run(name+"/"+string(f), func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "image")
				if err := writeImage(dir, f, packing{}, tars(layers)); err != nil {
					t.Fatal(err)
				}
				throughAll(l.in(t), want, "oci:"+dir)
			})
		}
	}
}

// madeOf is the tree that the unpacker makes of layers.
func madeOf(t *testing.T, layers [][]entry) files {
	t.Helper()
	dir := t.TempDir()
	inRoot(t, dir, func() error {
		u, err := newUnpacker()
		if err != nil {
			return err
		}
		for _, l := range layers {
			u.begin()
			for _, e := range l {
				if err := u.apply(e); err != nil {
					return err
				}
			}
		}
		return u.end()
	})
	return list(t, dir).counted()
}

// throughAll compares the views of an image, all but the merged tree, with what it must be.
func throughAll(l *lab, want files, image string) {
	l.t.Helper()
	dir := l.mount("--no-fill", image)
	view := list(l.t, dir)
	s := l.seal(dir)
	l.umount(dir)
	l.do("pexfs", "image", "check", s.file, "--root", s.Root)
	for how, got := range map[string]files{"view": view, "kernel": l.kernel(s.file)} {
		if d := diff(want, got); d != "" {
			l.t.Errorf("-want +%s\n%s", how, d)
		}
	}
}

// manyLayers is a stack in which each layer changes a folder, and takes away what the one before it gave.
func manyLayers(n int) [][]entry {
	layers := make([][]entry, n)
	for i := range layers {
		layers[i] = []entry{
			{name: "d", kind: '5', mode: 0o700 | uint32(i%8), uid: uint32(i), mtime: unix.Timespec{Sec: int64(i)}},
			{name: fmt.Sprintf("d/%d", i), kind: '0', mode: 0o644, content: whole(fmt.Append(nil, "layer ", i))},
			{name: fmt.Sprintf("d/.wh.%d", i-1), kind: '0'},
			{name: fmt.Sprintf("kept/%d", i%7), kind: '0', mode: 0o600, content: whole(bytes.Repeat([]byte{byte(i)}, i))},
			{name: "kept", kind: '5', mode: 0o755},
		}
	}
	return layers
}

// longNames has names of every length up to 255 bytes, and a path of 4,095.
func longNames() []entry {
	layer := []entry{{name: "names", kind: '5', mode: 0o755}}
	for n := 1; n <= 255; n++ {
		layer = append(layer, entry{name: "names/" + strings.Repeat("n", n), kind: '0', mode: 0o644})
	}
	deep := strings.Repeat(strings.Repeat("p", 255)+"/", 15)
	for i := 256; i <= len(deep); i += 256 {
		layer = append(layer, entry{name: deep[:i-1], kind: '5', mode: 0o755})
	}
	return append(layer, entry{name: deep + strings.Repeat("f", 4095-len(deep)), kind: '0', mode: 0o644, content: whole([]byte("deep"))},
		entry{name: "link", kind: '2', link: strings.Repeat("t", 4095)})
}

// TestWideDirectory has a directory of 100,000 entries.
func TestWideDirectory(t *testing.T) {
	layer := []entry{{name: "wide", kind: '5', mode: 0o755}}
	want := files{"": {Mode: unix.S_IFDIR | 0o755, Nlink: 3}, "/wide": {Mode: unix.S_IFDIR | 0o755, Nlink: 2}}
	for i := range 100_000 {
		e := entry{name: fmt.Sprintf("wide/%x", i*7919), kind: '0', mode: 0o644, uid: uint32(i), dialect: gnu}
		f := file{Mode: unix.S_IFREG | 0o644, UID: uint32(i), Nlink: 1, Sum: noneSum}
		switch {
		case i%1000 == 999:
			to := layer[len(layer)-1]
			e.kind, e.link, e.uid = '1', to.name, to.uid
			f = want["/"+to.name]
			f.Nlink, f.Same = 2, min("/"+to.name, "/"+e.name)
			want["/"+to.name] = f
		case i%100 == 0:
			e.content = whole(fmt.Appendf(nil, "content %d", i%9100))
			f.Size, f.Sum = e.content.size, sum(e.content.bytes()).Hex
		}
		layer = append(layer, e)
		want["/"+e.name] = f
	}
	l := newLab(t)
	for _, f := range []form{formGzip, formStargz} {
		t.Run(string(f), func(t *testing.T) {
			l, image := l.in(t), filepath.Join(t.TempDir(), "image")
			if err := writeImage(image, f, packing{}, tars([][]entry{layer})); err != nil {
				t.Fatal(err)
			}
			if f == formGzip {
				file := image + ".erofs"
				l.do("pexfs", "image", "build", "-q", "-o", file, "oci:"+image)
				if d := diff(want, l.kernel(file)); d != "" {
					t.Errorf("-want +kernel\n%s", d)
				}
				return
			}
			if d := diff(want, list(t, l.mount("--no-fill", "oci:"+image))); d != "" {
				t.Errorf("-want +view\n%s", d)
			}
		})
	}
}

// TestHugeFiles has files with holes of more than 4 and 8 GiB: sizes that don't fit into 32 bits, and into a header's octal digits. What is
// around each power of two and the ends is read through each view; the checker reads the rest.
func TestHugeFiles(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	layer := []entry{}
	for i, size := range []int64{4*gib + 5, 8*gib + 4097} {
		c := content{size: size}
		for off := int64(0); off < size; off += 2 * gib {
			b := make([]byte, 3*blockSize)
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			at := max(off-2*blockSize, 0) // across the border
			b = b[:min(int64(len(b)), size-at)]
			c.parts = append(c.parts, part{at, b})
		}
		layer = append(layer, entry{name: fmt.Sprint("huge", size), kind: '0', mode: 0o644, content: c, sparse: []sparse{sparseGNU, sparsePAX10}[i]})
	}
	l := newLab(t)
	image := filepath.Join(t.TempDir(), "image")
	if err := writeImage(image, formGzip, packing{}, tars([][]entry{layer})); err != nil {
		t.Fatal(err)
	}
	dir := l.mount("--no-fill", "oci:"+image)
	samePlaces(t, layer, dir)
	s := l.seal(dir)
	l.umount(dir)
	kernel := t.TempDir()
	l.do("pexfs", "image", "mount", "--kernel", s.file, kernel)
	t.Cleanup(func() { l.umount(kernel) })
	samePlaces(t, layer, kernel)
	if err := checkImage(s.file); err != nil {
		t.Error(err)
	}
}

// samePlaces compares files' sizes and what they have around their parts and at their ends.
func samePlaces(t *testing.T, layer []entry, dir string) {
	t.Helper()
	for _, e := range layer {
		f, err := os.Open(filepath.Join(dir, e.name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if st.Size() != e.content.size {
			t.Errorf("%s: %d bytes, want %d", path.Base(f.Name()), st.Size(), e.content.size)
		}
		places := append([]part{{off: e.content.size}}, e.content.parts...)
		for _, p := range places {
			const around = 10_000
			from := max(p.off-around, 0)
			got, want := make([]byte, 2*around), make([]byte, 2*around)
			n, err := f.ReadAt(got, from)
			if err != nil && err != io.EOF {
				t.Fatal(err)
			}
			for _, q := range e.content.parts {
				if q.off < from+2*around && q.off+int64(len(q.b)) > from && q.off >= from {
					copy(want[q.off-from:], q.b)
				}
			}
			want = want[:min(int64(len(want)), e.content.size-from)]
			if !bytes.Equal(want, got[:n]) {
				t.Errorf("%s: %d bytes at %d are others", path.Base(f.Name()), n, from)
			}
		}
	}
}
