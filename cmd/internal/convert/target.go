package convert

import (
	"bytes"
	"context"
	"io"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/registry"
)

// target is where an image goes. Blobs may be put concurrently.
type target interface {
	// blob puts a blob, unless it is there already; then open isn't called. open may be called again after a failure.
	blob(ctx context.Context, d v1.Descriptor, open opener) (sent bool, err error)
	// manifest puts a manifest or index that others refer to by digest.
	manifest(ctx context.Context, d v1.Descriptor, body []byte) error
	// commit puts the manifest or index that the image's name is to mean.
	commit(ctx context.Context, d v1.Descriptor, body []byte) error
}

// opener opens a blob's bytes from their beginning.
type opener func(ctx context.Context) (io.ReadCloser, error)

func bytesBlob(b []byte) opener {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

func openTarget(r ref.Ref, o registry.Options) (target, error) {
	if r.Transport == ref.OCI {
		return &folder{dir: r.Dir, tag: r.Tag}, nil
	}
	repo := r.Name.Context()
	if o.Insecure {
		reg, err := name.NewRegistry(repo.RegistryStr(), name.Insecure)
		if err != nil {
			return nil, err
		}
		repo.Registry = reg
	}
	p, err := remote.NewPusher(
		remote.WithAuth(authn.FromConfig(o.Auth)),
		remote.WithTransport(o.RoundTripper(repo)),
	)
	if err != nil {
		return nil, err
	}
	return &remoteTarget{repo: repo, tag: r.Name.Identifier(), pusher: p}, nil
}

// remoteTarget is a registry.
type remoteTarget struct {
	repo   name.Repository
	tag    string
	pusher *remote.Pusher
}

func (t *remoteTarget) blob(ctx context.Context, d v1.Descriptor, open opener) (bool, error) {
	l := &remoteLayer{ctx: ctx, desc: d, open: open}
	err := t.pusher.Upload(ctx, t.repo, l)
	return l.opened.Load(), err
}

func (t *remoteTarget) manifest(ctx context.Context, d v1.Descriptor, body []byte) error {
	return t.pusher.Put(ctx, t.repo.Digest(d.Digest.String()), document{d.MediaType, body})
}

func (t *remoteTarget) commit(ctx context.Context, d v1.Descriptor, body []byte) error {
	return t.pusher.Put(ctx, t.repo.Tag(t.tag), document{d.MediaType, body})
}

// remoteLayer is a blob as remote.Pusher takes it. It asks for the bytes only if the registry hasn't got them.
type remoteLayer struct {
	ctx    context.Context // of the one upload it is made for
	desc   v1.Descriptor
	open   opener
	opened atomic.Bool
}

func (l *remoteLayer) Digest() (v1.Hash, error)             { return l.desc.Digest, nil }
func (l *remoteLayer) DiffID() (v1.Hash, error)             { return v1.Hash{}, nil } // not asked for
func (l *remoteLayer) Size() (int64, error)                 { return l.desc.Size, nil }
func (l *remoteLayer) MediaType() (types.MediaType, error)  { return l.desc.MediaType, nil }
func (l *remoteLayer) Uncompressed() (io.ReadCloser, error) { return l.Compressed() } // not asked for
func (l *remoteLayer) Compressed() (io.ReadCloser, error) {
	l.opened.Store(true)
	return l.open(l.ctx)
}

// document is a manifest or index as remote.Pusher takes it.
type document struct {
	mediaType types.MediaType
	body      []byte
}

func (d document) RawManifest() ([]byte, error)        { return d.body, nil }
func (d document) MediaType() (types.MediaType, error) { return d.mediaType, nil }
