package lazy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/registry"
	"github.com/pexfs/pex/lazy/store"
)

// memRepo is an image in memory that counts what is fetched of it.
type memRepo struct {
	blobs   map[v1.Hash][]byte
	root    v1.Descriptor
	gone    atomic.Bool
	fetched sync.Map // bytes by digest

	probes, resolved atomic.Int64 // calls
	noDigest         bool         // Probe tells none
	requests         atomic.Int64
	noRanges         bool
	change           func(off int64, p []byte) // where not nil, called with what each Fetch will give
	hold             func()                    // where not nil, called by each Fetch before it answers
}

func newRepo() *memRepo { return &memRepo{blobs: make(map[v1.Hash][]byte)} }

func (r *memRepo) put(b []byte, mt types.MediaType) v1.Descriptor {
	h := sha256.Sum256(b)
	d := v1.Descriptor{MediaType: mt, Size: int64(len(b)), Digest: v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", h)}}
	r.blobs[d.Digest] = b
	return d
}

func (r *memRepo) Resolve(context.Context) (v1.Descriptor, error) {
	r.resolved.Add(1)
	if r.gone.Load() {
		return v1.Descriptor{}, fmt.Errorf("%w: gone", registry.ErrUnreachable)
	}
	return r.root, nil
}

func (r *memRepo) Probe(ctx context.Context) (v1.Hash, error) {
	r.probes.Add(1)
	d, err := r.Resolve(ctx)
	if r.noDigest {
		d.Digest = v1.Hash{}
	}
	return d.Digest, err
}

func (r *memRepo) Manifest(_ context.Context, d v1.Descriptor) ([]byte, error) {
	return r.blobs[d.Digest], nil
}

func (r *memRepo) Blob(d v1.Descriptor) blob.Source { return &memBlob{r, d} }

type memBlob struct {
	r *memRepo
	d v1.Descriptor
}

func (b *memBlob) Size() int64 { return b.d.Size }
func (b *memBlob) Fetch(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if b.r.gone.Load() {
		return nil, fmt.Errorf("%w: gone", registry.ErrUnreachable)
	}
	if b.r.noRanges && n < b.d.Size {
		return nil, fmt.Errorf("%w: not here", blob.ErrRangeUnsupported)
	}
	b.r.requests.Add(1)
	if b.r.hold != nil {
		b.r.hold()
	}
	c, _ := b.r.fetched.LoadOrStore(b.d.Digest, new(atomic.Int64))
	c.(*atomic.Int64).Add(n)
	p := b.r.blobs[b.d.Digest][off : off+n]
	if b.r.change != nil {
		p = bytes.Clone(p)
		b.r.change(off, p)
	}
	return io.NopCloser(bytes.NewReader(p)), nil
}

func (r *memRepo) of(d v1.Descriptor) int64 {
	if c, ok := r.fetched.Load(d.Digest); ok {
		return c.(*atomic.Int64).Load()
	}
	return 0
}

// layer is a made layer: its descriptor and diffID.
type madeLayer struct {
	d    v1.Descriptor
	diff v1.Hash
}

func tarOf(t *testing.T, files map[string][]byte, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range names {
		if err := w.WriteHeader(&tar.Header{Name: n, Mode: 0o644, Size: int64(len(files[n])), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[n]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (r *memRepo) gzipLayer(t *testing.T, raw []byte) madeLayer {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(raw)
	z.Close()
	h := sha256.Sum256(raw)
	return madeLayer{r.put(b.Bytes(), types.OCILayer), v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", h)}}
}

func (r *memRepo) stargzLayer(t *testing.T, raw []byte, chunk int) madeLayer {
	t.Helper()
	bl, err := estargz.Build(io.NewSectionReader(bytes.NewReader(raw), 0, int64(len(raw))), estargz.WithChunkSize(chunk))
	if err != nil {
		t.Fatal(err)
	}
	defer bl.Close()
	b, err := io.ReadAll(bl)
	if err != nil {
		t.Fatal(err)
	}
	d := r.put(b, types.OCILayer)
	d.Annotations = map[string]string{estargz.TOCJSONDigestAnnotation: bl.TOCDigest().String()}
	return madeLayer{d, v1.Hash{Algorithm: "sha256", Hex: bl.DiffID().Encoded()}}
}

func (r *memRepo) image(t *testing.T, layers ...madeLayer) {
	t.Helper()
	var m v1.Manifest
	cfg := v1.ConfigFile{OS: "linux", Architecture: "amd64"}
	for _, l := range layers {
		m.Layers = append(m.Layers, l.d)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.diff)
	}
	cb, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.SchemaVersion, m.MediaType, m.Config = 2, types.OCIManifestSchema1, r.put(cb, types.OCIConfigJSON)
	mb, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	r.root = r.put(mb, types.OCIManifestSchema1)
}

func newCache(t *testing.T, dir string) *Cache {
	t.Helper()
	return newCacheOf(t, dir, Options{})
}

func newCacheOf(t *testing.T, dir string, o Options) *Cache {
	t.Helper()
	st, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Lock(); err != nil {
		t.Fatal(err)
	}
	c := NewCache(st, o)
	t.Cleanup(func() { c.Close(); st.Close() })
	return c
}

var amd64 = ref.Platform{OS: "linux", Architecture: "amd64"}

func open(t *testing.T, c *Cache, r Repo, name string) (*Opened, error) {
	t.Helper()
	n, err := ref.Parse("localhost/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return c.Open(context.Background(), n, r, OpenOptions{Platform: amd64, Pull: PullAlways})
}

func mustOpen(t *testing.T, c *Cache, r Repo, name string) *Image {
	t.Helper()
	o, err := open(t, c, r, name)
	if err != nil {
		t.Fatal(err)
	}
	return o.Image
}

func random(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// testFiles have sizes at and around the edges of blocks and chunks.
func testFiles() (map[string][]byte, []string) {
	files := make(map[string][]byte)
	var names []string
	for i, n := range []int{1, 4095, 4096, 4097, 5000, 5001, 9999, 40000, 123457, 3 << 20} {
		name := fmt.Sprintf("f%d", n)
		files[name] = random(n, uint64(i))
		names = append(names, name)
	}
	return files, names
}

// check reads every file of a filled image and compares it.
func check(t *testing.T, im *Image, files map[string][]byte) {
	t.Helper()
	v, err := store.OpenView(im.Dir())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	e, err := erofs.Open(v.File(), v.Info.Size)
	if err != nil {
		t.Fatal(err)
	}
	root, err := e.Inode(1)
	if err != nil {
		t.Fatal(err)
	}
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
		if err := im.Need(context.Background(), off, max(in.Size, 1)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !v.Has(off, in.Size) {
			t.Fatalf("%s is not present after Need", name)
		}
		got := make([]byte, in.Size)
		if _, err := v.File().ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: other bytes (%v)", name, err)
		}
	}
}

func fill(t *testing.T, im *Image) string {
	t.Helper()
	was := im.State() == store.Sealed
	if told(im) != was {
		t.Fatalf("whoever waits is told that the image is sealed: %v, it is: %v", told(im), was)
	}
	if err := im.Fill(context.Background()); err != nil {
		t.Fatal(err)
	}
	if im.State() != store.Sealed || !told(im) {
		t.Fatalf("%s; whoever waits is told: %v", im.State(), told(im))
	}
	return im.Root()
}

// told says whether whoever waits for an image to be sealed waits no more.
func told(im *Image) bool {
	select {
	case <-im.Sealed():
		return true
	default:
		return false
	}
}

// TestLazyAndStreamed opens an image of both kinds of layers, with chunks that share blocks, and fills it in several ways: the
// root is the same.
func TestLazyAndStreamed(t *testing.T) {
	files, names := testFiles()
	r := newRepo()
	r.image(t, r.gzipLayer(t, tarOf(t, files, names[:4]...)), r.stargzLayer(t, tarOf(t, files, names[4:]...), 5000))
	c := newCache(t, filepath.Join(t.TempDir(), "c"))
	im := mustOpen(t, c, r, "a:1")
	if im.State() != store.Lazy {
		t.Fatal(im.State())
	}
	check(t, im, files)
	want := fill(t, im)

	dir := filepath.Join(t.TempDir(), "c")
	c = newCache(t, dir)
	im = mustOpen(t, c, r, "a:1")
	if got := fill(t, im); got != want {
		t.Errorf("filled in order: root %s, by reads: %s", got, want)
	}

	// half by reads in disorder, then another process
	dir = filepath.Join(t.TempDir(), "c")
	c = newCache(t, dir)
	im = mustOpen(t, c, r, "a:1")
	size := im.Info().Size
	rnd := rand.New(rand.NewPCG(9, 9))
	var wg sync.WaitGroup
	for range 40 {
		off := rnd.Int64N(size - 10000)
		wg.Go(func() {
			if err := im.Need(context.Background(), off, 1+off%9999); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(c.Close(), c.Store().Close()); err != nil {
		t.Fatal(err)
	}
	c = newCache(t, dir)
	im = mustOpen(t, c, r, "a:1")
	check(t, im, files)
	if got := fill(t, im); got != want {
		t.Errorf("after a restart: root %s, want %s", got, want)
	}
}

// TestSameBase opens a second image on the same layers: nothing of them is fetched again, not even what the first one hid.
func TestSameBase(t *testing.T) {
	files, names := testFiles()
	for _, kind := range []string{"lazy", "streamed"} {
		t.Run(kind, func(t *testing.T) {
			r := newRepo()
			raw := tarOf(t, files, names...)
			base := r.gzipLayer(t, raw)
			if kind == "lazy" {
				base = r.stargzLayer(t, raw, 5000)
			}
			hide := r.gzipLayer(t, tarOf(t, map[string][]byte{".wh.f40000": nil, "x": []byte("x")}, ".wh.f40000", "x"))
			c := newCache(t, filepath.Join(t.TempDir(), "c"))
			r.image(t, base, hide)
			fill(t, mustOpen(t, c, r, "one:1"))
			before := r.of(base.d)
			if before == 0 {
				t.Fatal("nothing was fetched")
			}
			r.image(t, base)
			im := mustOpen(t, c, r, "two:1")
			check(t, im, files)
			fill(t, im)
			again := r.of(base.d) - before
			if most := map[string]int64{"lazy": 50_000, "streamed": 0}[kind]; again > most { // lazily, what was hidden was never fetched
				t.Errorf("%d bytes of the base were fetched again", again)
			}
		})
	}
}

func TestWrongBytes(t *testing.T) {
	files, names := testFiles()
	raw := tarOf(t, files, names...)
	t.Run("chunk", func(t *testing.T) {
		r := newRepo()
		l := r.stargzLayer(t, raw, 0)
		r.image(t, l)
		c := newCache(t, filepath.Join(t.TempDir(), "c"))
		im := mustOpen(t, c, r, "a:1")
		b := r.blobs[l.d.Digest]
		for i := 2000; i < len(b)/2; i += 50 { // contents, not the table at the end
			b[i] ^= 0x55
		}
		present := im.Present()
		if err := im.Fill(context.Background()); err == nil {
			t.Fatal("wrong bytes were taken")
		}
		if im.State() != store.Lazy || im.Err() == nil {
			t.Error(im.State(), im.Err())
		}
		if im.Present() > present+int64(len(raw)) {
			t.Error("more is present than there is")
		}
	})
	for name, damage := range map[string]func(*madeLayer){
		"TOC": func(l *madeLayer) {
			l.d.Annotations[estargz.TOCJSONDigestAnnotation] = "sha256:" + fmt.Sprintf("%064x", 7)
		},
		"diffID": func(l *madeLayer) { l.diff.Hex = fmt.Sprintf("%064x", 7); l.d.Annotations = nil },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo()
			l := r.stargzLayer(t, raw, 0)
			damage(&l)
			r.image(t, l)
			c := newCache(t, filepath.Join(t.TempDir(), "c"))
			if _, err := open(t, c, r, "a:1"); !errors.Is(err, blob.ErrDigestMismatch) {
				t.Fatalf("got %v", err)
			}
			left, err := filepath.Glob(filepath.Join(c.Store().Dir(), "tmp/*"))
			if err != nil || len(left) > 0 {
				t.Error("left behind:", left, err)
			}
			if images, err := c.Store().Images(); err != nil || len(images) > 0 {
				t.Error(images, err)
			}
		})
	}
}

// TestUnreachable opens what was opened before when nothing answers any more.
func TestUnreachable(t *testing.T) {
	files, names := testFiles()
	r := newRepo()
	r.image(t, r.gzipLayer(t, tarOf(t, files, names...)))
	c := newCache(t, filepath.Join(t.TempDir(), "c"))
	fill(t, mustOpen(t, c, r, "a:1"))
	r.gone.Store(true)
	n, err := ref.Parse("localhost/a:1")
	if err != nil {
		t.Fatal(err)
	}
	warned := false
	o, err := c.Open(context.Background(), n, r, OpenOptions{Platform: amd64, Pull: PullNewer, Progress: func(e Event) { warned = warned || e.Stage == "warning" }})
	if err != nil || !warned {
		t.Fatal(err, warned)
	}
	check(t, o.Image, files)
	if _, err := open(t, c, r, "b:1"); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a reference never seen: %v", err)
	}
}

// TestOpenTogether has many open one image: its layer is streamed once, and one who gives up takes it from nobody.
func TestOpenTogether(t *testing.T) {
	files, names := testFiles()
	r := newRepo()
	l := r.gzipLayer(t, tarOf(t, files, names...))
	r.image(t, l)
	c := newCache(t, filepath.Join(t.TempDir(), "c"))
	n, err := ref.Parse("localhost/a:1")
	if err != nil {
		t.Fatal(err)
	}
	begun, goOn := make(chan struct{}, 100), make(chan struct{})
	r.hold = func() { begun <- struct{}{}; <-goOn }
	var wg sync.WaitGroup
	for range 7 {
		wg.Go(func() {
			if _, err := c.Open(context.Background(), n, r, OpenOptions{Platform: amd64}); err != nil {
				t.Error(err)
			}
		})
	}
	<-begun
	ctx, cancel := context.WithCancel(context.Background()) // of one who gives up
	cancel()
	if _, err := c.Open(ctx, n, r, OpenOptions{Platform: amd64}); err == nil {
		t.Error("it was open before it was read")
	}
	close(goOn)
	wg.Wait()
	if got := r.of(l.d); got > l.d.Size {
		t.Errorf("%d bytes were fetched of a layer of %d", got, l.d.Size)
	}
}
