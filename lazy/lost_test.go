package lazy

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/lazy/store"
)

// lose has the disk lose a block of an image that is in memory.
func lose(t *testing.T, im *Image, off int64) {
	t.Helper()
	_, err := im.file.File().WriteAt(make([]byte, store.BlockSize), off)
	if err := errors.Join(err, im.file.Forget([]int64{off / store.BlockSize}, false)); err != nil {
		t.Fatal(err)
	}
}

// TestLostChunk loses blocks of chunks that this process has written, those that a chunk has for itself and those that it shares: they
// are fetched again, whether the folder takes them or not.
func TestLostChunk(t *testing.T) {
	files := map[string][]byte{"a": random(400_000, 1)}
	for _, unwritable := range []bool{false, true} {
		t.Run(fmt.Sprint("unwritable ", unwritable), func(t *testing.T) {
			r := newRepo()
			r.image(t, r.stargzLayer(t, tarOf(t, files, "a"), 50_000))
			c := newCache(t, filepath.Join(t.TempDir(), "c"))
			c.trouble.every = time.Hour
			im := mustOpen(t, c, r, "a:1")
			e := im.plan.extent(0)
			if err := im.Need(t.Context(), e.off, e.size); err != nil {
				t.Fatal(err)
			}
			offs := []int64{0, 8192, 49_152, 98_304, 397_312} // the third and the fourth have bytes of two chunks
			for _, off := range offs {
				lose(t, im, e.off+off)
			}
			if unwritable {
				c.met(fmt.Errorf("writing: %w", store.ErrUnwritable), 0)
			}
			for _, off := range offs {
				want := make([]byte, store.BlockSize)
				copy(want, files["a"][off:])
				b, err := im.Read(t.Context(), e.off+off, store.BlockSize)
				if err != nil || !bytes.Equal(b, want) {
					t.Errorf("at %d: other bytes, %v", off, err)
				}
				if im.file.Has(e.off+off, 1) == unwritable {
					t.Errorf("at %d: the block is present: %v", off, !unwritable)
				}
			}
		})
	}
}

// TestLostUnfetchable loses what can't be fetched by itself: reading it is an error, and gives no bytes.
func TestLostUnfetchable(t *testing.T) {
	files := map[string][]byte{"a": random(400_000, 1), "b": random(300_000, 2)}
	r := newRepo()
	r.image(t, r.stargzLayer(t, tarOf(t, files, "a"), 50_000), r.gzipLayer(t, tarOf(t, files, "b")))
	c := newCache(t, filepath.Join(t.TempDir(), "c"))
	im := mustOpen(t, c, r, "a:1")
	var streamed int64
	for i := range im.plan.extents {
		if e := im.plan.extent(i); e.chunks == 0 {
			streamed = e.off
		} else if err := im.Need(t.Context(), e.off, e.size); err != nil {
			t.Fatal(err)
		}
	}
	for name, off := range map[string]int64{"streamed": streamed + 8192, "metadata": im.Info().MetaOff, "superblock": 0} {
		t.Run(name, func(t *testing.T) {
			lose(t, im, off)
			if _, err := im.Read(t.Context(), off, store.BlockSize); !errors.Is(err, store.ErrDamaged) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// failing gives the name of a file that can't be read for an error of its device: a terminal that is locked.
func failing(t *testing.T) string {
	t.Helper()
	f, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	n, err := unix.IoctlGetUint32(int(f.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprint("/dev/pts/", n)
	if _, err := os.Open(name); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	return name
}

// TestSealOnFailingDisk fills an image of which the disk loses a block before it is sealed, which fails. What is left is found by a check of
// all, the rest is fetched again; where it can't be, the image is made anew when it is opened.
func TestSealOnFailingDisk(t *testing.T) {
	files := map[string][]byte{"a": random(400_000, 1)}
	for _, lost := range []string{"nothing", "content", "metadata"} {
		t.Run(lost, func(t *testing.T) {
			r := newRepo()
			r.image(t, r.stargzLayer(t, tarOf(t, files, "a"), 50_000))
			c := newCache(t, filepath.Join(t.TempDir(), "c"))
			c.trouble.every = 0
			im := mustOpen(t, c, r, "a:1")
			e, key := im.plan.extent(0), im.Info().Key
			if err := im.Need(t.Context(), e.off, e.size); err != nil {
				t.Fatal(err)
			}
			off := map[string]int64{"content": e.off + 8192, "metadata": im.Info().MetaOff}[lost]
			if off > 0 {
				if _, err := im.file.File().WriteAt(make([]byte, store.BlockSize), off); err != nil {
					t.Fatal(err)
				}
			}
			plan := filepath.Join(im.Dir(), "plan") // it is put on disk with the rest
			err := errors.Join(os.Rename(plan, plan+".kept"), os.Symlink(failing(t), plan))
			if err != nil {
				t.Fatal(err)
			}
			size := im.Info().Size
			if err := im.Fill(t.Context()); !errors.Is(err, ErrReopened) {
				t.Fatalf("filling: %v", err)
			}
			if err := os.Rename(plan+".kept", plan); err != nil {
				t.Fatal(err)
			}
			if lost == "metadata" {
				if _, err := c.Image(t.Context(), key); !errors.Is(err, store.ErrDamaged) {
					t.Errorf("opening what has no metadata: %v", err)
				}
			}
			im = mustOpen(t, c, r, "a:1")
			missing := map[string]int64{"nothing": 0, "content": store.BlockSize, "metadata": blocksEnd(0, e.size)}[lost]
			if n := size - im.Present(); n != missing {
				t.Errorf("%d bytes are missing, not %d", n, missing)
			}
			checkRead(t, im, files, 100_000)
			fill(t, im)
			check(t, im, files)
		})
	}
}
