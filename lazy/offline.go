package lazy

import (
	"context"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/blob"
)

// offline is a Repo that asks nobody. Whatever would have to be asked for fails with ErrOffline.
type offline struct{}

var _ Repo = offline{}

func (offline) Resolve(context.Context) (v1.Descriptor, error) { return v1.Descriptor{}, ErrOffline }

func (offline) Probe(context.Context) (v1.Hash, error) { return v1.Hash{}, ErrOffline }

func (offline) Manifest(context.Context, v1.Descriptor) ([]byte, error) { return nil, ErrOffline }

func (offline) Blob(d v1.Descriptor) blob.Source { return offlineBlob(d.Size) }

type offlineBlob int64

func (b offlineBlob) Size() int64 { return int64(b) }

func (offlineBlob) Fetch(context.Context, int64, int64) (io.ReadCloser, error) {
	return nil, ErrOffline
}
