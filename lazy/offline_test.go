package lazy

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/store"
)

// TestOffline opens images without a repository, before they are opened with one, before they are complete, and after.
func TestOffline(t *testing.T) {
	files, names := testFiles()
	r := newRepo()
	r.image(t, r.gzipLayer(t, tarOf(t, files, names[:4]...)), r.stargzLayer(t, tarOf(t, files, names[4:]...), 5000))
	dir := filepath.Join(t.TempDir(), "c")
	c := newCache(t, dir)
	offline := func(name string, o OpenOptions) (*Opened, error) {
		t.Helper()
		n, err := ref.Parse("localhost/" + name)
		if err != nil {
			t.Fatal(err)
		}
		o.Offline = true
		return c.Open(context.Background(), n, nil, o)
	}
	byDigest := "b@" + r.root.Digest.String()
	refused := func(when string) {
		t.Helper()
		for _, name := range []string{"a:1", byDigest} {
			if _, err := offline(name, OpenOptions{Platform: amd64}); !errors.Is(err, ErrOffline) {
				t.Errorf("%s, %s: %v, want ErrOffline", when, name, err)
			}
		}
	}
	refused("not opened yet")
	im := mustOpen(t, c, r, "a:1")
	refused("incomplete")
	if !im.HasRepo() {
		t.Error("the image has lost its repository")
	}
	fill(t, im)
	if err := errors.Join(c.Close(), c.Store().Close()); err != nil {
		t.Fatal(err)
	}
	c = newCache(t, dir)
	if _, err := offline("a:2", OpenOptions{Platform: amd64}); !errors.Is(err, ErrOffline) {
		t.Errorf("another tag: %v, want ErrOffline", err)
	}
	if _, err := offline("a:1", OpenOptions{Platform: ref.Platform{OS: "linux", Architecture: "arm64"}}); !errors.Is(err, ErrOffline) {
		t.Errorf("another platform: %v, want ErrOffline", err)
	}
	if _, err := offline("a:1", OpenOptions{Platform: amd64, Verify: true}); !errors.Is(err, ErrOffline) {
		t.Errorf("not verified yet: %v, want ErrOffline", err)
	}
	for _, name := range []string{"a:1", byDigest} {
		o, err := offline(name, OpenOptions{Platform: amd64})
		if err != nil {
			t.Fatal(err)
		}
		if o.Manifest != r.root.Digest.Hex || len(o.Config) == 0 || o.Image.State() != store.Sealed {
			t.Errorf("%s: manifest %s, config %q, %s", name, o.Manifest, o.Config, o.Image.State())
		}
		check(t, o.Image, files)
	}
	if _, err := open(t, c, r, "a:1"); err != nil {
		t.Fatal(err)
	}
}

// TestDigestAsksNobody opens by digest, with another name, what was opened by tag.
func TestDigestAsksNobody(t *testing.T) {
	files, names := testFiles()
	r := newRepo()
	r.image(t, r.stargzLayer(t, tarOf(t, files, names...), 5000))
	c := newCache(t, filepath.Join(t.TempDir(), "c"))
	im := mustOpen(t, c, r, "a:1")
	r.gone.Store(true)
	before := r.requests.Load()
	if again := mustOpen(t, c, r, "b@"+r.root.Digest.String()); again != im {
		t.Error("it is another image")
	}
	if n := r.requests.Load() - before; n != 0 {
		t.Errorf("%d requests", n)
	}
	var m v1.Manifest
	if err := json.Unmarshal(r.blobs[r.root.Digest], &m); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"sha256:" + strings.Repeat("0", 64), m.Config.Digest.String()} { // unknown, and known but no manifest
		if _, err := open(t, c, r, "b@"+d); !errors.Is(err, ErrUnreachable) {
			t.Errorf("%s: %v, want ErrUnreachable", d, err)
		}
	}
}
