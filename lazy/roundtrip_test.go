package lazy

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// meeting is a repository that answers nobody who asks for a config or a layer before all have asked.
type meeting struct {
	*memRepo
	t    *testing.T
	want int // who are to ask

	mu   sync.Mutex
	come int
	all  chan struct{}
}

func (m *meeting) arrive() {
	m.mu.Lock()
	if m.come++; m.come == m.want {
		close(m.all)
	}
	m.mu.Unlock()
	select {
	case <-m.all:
	case <-time.After(time.Minute):
		m.t.Error("a request waits for the answer to another one")
	}
}

func (m *meeting) Manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	if d.MediaType == types.OCIConfigJSON {
		m.arrive()
	}
	return m.memRepo.Manifest(ctx, d)
}

// TestOneRoundTrip opens an image of many layers: behind the manifest one round trip is enough, for the config and all tables of contents.
func TestOneRoundTrip(t *testing.T) {
	files, names := testFiles()
	m := &meeting{memRepo: newRepo(), t: t, all: make(chan struct{})}
	var layers []madeLayer
	for _, n := range names {
		layers = append(layers, m.stargzLayer(t, tarOf(t, files, n), 5000))
	}
	m.image(t, layers...)
	m.want = len(layers) + 1
	m.hold = m.arrive
	c := newCache(t, filepath.Join(t.TempDir(), "c"))
	if _, err := open(t, c, m, "a:1"); err != nil {
		t.Fatal(err)
	}
	if m.come != m.want {
		t.Errorf("%d requests, want %d", m.come, m.want)
	}
}
