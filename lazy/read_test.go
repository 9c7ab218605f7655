package lazy

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/store"
)

// smallDisk is a file system of its own, for root, until the test ends.
func smallDisk(t *testing.T, size string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// ballast fills a file system but for so many bytes.
func ballast(t *testing.T, dir string, but int64) (remove func()) {
	t.Helper()
	name := filepath.Join(dir, "ballast")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, store.BlockSize))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err := errors.Join(err, f.Truncate(max(0, st.Size()-but)), f.Close()); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
	}
}

// counted is a log that counts its lines by what they say.
type counted struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *counted) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, msg, _ := strings.Cut(string(p), "msg=")
	if c.n == nil {
		c.n = make(map[string]int)
	}
	c.n[strings.SplitN(msg, "=", 2)[0]]++
	return len(p), nil
}

func (c *counted) logger() *slog.Logger { return slog.New(slog.NewTextHandler(c, nil)) }

func (c *counted) of(msg string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, v := range c.n {
		if strings.Contains(k, msg) {
			n += v
		}
	}
	return n
}

// checkRead reads files by Read, in pieces of n bytes.
func checkRead(t *testing.T, im *Image, files map[string][]byte, n int64) {
	t.Helper()
	e, err := erofs.Open(im.file.File(), im.Info().Size)
	if err != nil {
		t.Fatal(err)
	}
	root, err := e.Inode(1)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for name, want := range files {
		nid, err := e.Lookup(root, name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		in, err := e.Inode(nid)
		if err != nil {
			t.Fatal(err)
		}
		off, err := e.DataOff(in)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			var got []byte
			// whole blocks: what follows a content is zeros
			size := blocksEnd(0, in.Size)
			for int64(len(got)) < size {
				b, err := im.Read(context.Background(), off+int64(len(got)), min(n, size-int64(len(got))))
				if err != nil || len(b) == 0 {
					t.Errorf("%s: %d bytes, %v", name, len(b), err)
					return
				}
				got = append(got, b...)
			}
			if !bytes.Equal(got[:in.Size], want) || bytes.ContainsFunc(got[in.Size:], func(r rune) bool { return r != 0 }) {
				t.Errorf("%s: other bytes", name)
			}
		})
	}
	wg.Wait()
}

// TestDiskFull fills the disk under an image that is being read and filled, which is noticed before or when it is written to: whoever reads
// gets the right bytes, the filler rests, and goes on when there is room again. That is said once.
func TestDiskFull(t *testing.T) {
	for name, size := range map[string]int64{"noticed before": 0, "not before": -1} {
		t.Run(name, func(t *testing.T) { testDiskFull(t, size) })
	}
}

func testDiskFull(t *testing.T, size int64) {
	files, names := testFiles()
	r := newRepo()
	r.image(t, r.stargzLayer(t, tarOf(t, files, names...), 5000))
	disk := smallDisk(t, "16m")
	log := new(counted)
	c := newCacheOf(t, filepath.Join(disk, "c"), Options{Size: size, Log: log.logger()})
	im := mustOpen(t, c, r, "a:1")
	for _, free := range []int64{0, 300_000} {
		remove := ballast(t, disk, free)
		for _, n := range []int64{4096, 100_000, 3 << 20} {
			checkRead(t, im, files, n)
		}
		if im.Present() == im.Info().Size {
			t.Error("all of it was written")
		}
		if err := c.Trouble(t.Context()); !errors.Is(err, store.ErrUnwritable) || errors.Is(err, syscall.ENOSPC) != (size < 0) {
			t.Errorf("the trouble is %v", err)
		}
		if got := c.unwritten.bytes; got > unwrittenMax {
			t.Errorf("%d bytes are held", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := im.Fill(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the filler: %v", err)
		}
		cancel()
		remove()
	}
	fetched := im.Fetched()
	c.trouble.mu.Lock()
	c.trouble.tried = time.Time{}
	c.trouble.mu.Unlock()
	fill(t, im)
	if err := c.Trouble(t.Context()); err != nil {
		t.Error(err)
	}
	check(t, im, files)
	if n := log.of("takes no more"); n != 1 {
		t.Errorf("%d warnings: %v", n, log.n)
	}
	t.Logf("%d bytes fetched on the full disk, %d afterwards, of a layer of %d", fetched, im.Fetched()-fetched, im.Info().Layers[0].Size)
}

// TestDiskFullOfClones opens an image whose contents another image has, on a disk that has no room for both.
func TestDiskFullOfClones(t *testing.T) {
	files, names := testFiles()
	r := newRepo()
	first := r.stargzLayer(t, tarOf(t, files, names...), 5000)
	r.image(t, first)
	disk := smallDisk(t, "16m")
	c := newCache(t, filepath.Join(disk, "c"))
	fill(t, mustOpen(t, c, r, "a:1"))
	own := map[string][]byte{"own": random(10_000, 99)}
	r.image(t, first, r.stargzLayer(t, tarOf(t, own, "own"), 0))
	im := mustOpen(t, c, r, "b:1")
	remove := ballast(t, disk, 0)
	all := map[string][]byte{"own": own["own"]}
	for n, b := range files {
		all[n] = b
	}
	checkRead(t, im, all, 50_000)
	if n := im.Fetched(); n > 20_000 {
		t.Errorf("%d bytes were fetched, though another image has them", n)
	}
	remove()
	c.trouble.mu.Lock()
	c.trouble.tried = time.Time{}
	c.trouble.mu.Unlock()
	fill(t, im)
	check(t, im, all)
}

// TestOpenOnFullDisk opens images of both kinds where there is no room for their metadata: that fails, says why, and leaves nothing behind.
func TestOpenOnFullDisk(t *testing.T) {
	files, names := testFiles()
	for _, kind := range []string{"stargz", "gzip"} {
		t.Run(kind, func(t *testing.T) {
			r := newRepo()
			l := r.gzipLayer(t, tarOf(t, files, names...))
			if kind == "stargz" {
				l = r.stargzLayer(t, tarOf(t, files, names...), 1000)
			}
			r.image(t, l)
			disk := smallDisk(t, "16m")
			c := newCache(t, filepath.Join(disk, "c"))
			remove := ballast(t, disk, 64<<10)
			if _, err := open(t, c, r, "a:1"); !errors.Is(err, store.ErrUnwritable) || !strings.Contains(err.Error(), "needed") {
				t.Errorf("got %v", err)
			}
			c.trims.Wait()
			for _, d := range []string{"tmp", "images", "layers"} {
				all, err := os.ReadDir(filepath.Join(disk, "c", d))
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range all {
					t.Errorf("%s/%s is left", d, f.Name())
				}
			}
			remove()
			im := mustOpen(t, c, r, "a:1")
			fill(t, im)
			check(t, im, files)
		})
	}
}
