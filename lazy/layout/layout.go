// Package layout reads images from folders in the OCI image layout (image specification v1.1, image-layout.md). It has
// the same methods as package registry. It never writes.
//
// A folder may change while it is read, as when another image is added: index.json is read by every Resolve, and a blob
// is opened by its digest for every Fetch, so nothing is kept open or remembered. All methods may be called concurrently.
package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/ref"
)

// RefName is the annotation that holds an image's name within a layout (image specification, annotations.md).
const RefName = "org.opencontainers.image.ref.name"

// maxManifest is the largest index.json, manifest, index or configuration that is read, in bytes.
const maxManifest = 8 << 20

// Repo is one image of a layout, or what will be there.
type Repo struct{ ref ref.Ref }

// Open prepares to read the image r names. The folder isn't looked at before the first use.
func Open(r ref.Ref) (*Repo, error) {
	if r.Transport != ref.OCI || r.Dir == "" {
		return nil, fmt.Errorf("opening %v: not a reference to an OCI layout", r)
	}
	return &Repo{r}, nil
}

// Resolve gives the descriptor of the manifest or index that the reference names. With neither tag nor digest that is the
// layout's only image. A folder, name or digest that isn't there is fs.ErrNotExist.
func (r *Repo) Resolve(ctx context.Context) (v1.Descriptor, error) {
	d, err := r.resolve(ctx)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("resolving %v: %w", r.ref, err)
	}
	return d, nil
}

// Probe gives the digest that Resolve would.
func (r *Repo) Probe(ctx context.Context) (v1.Hash, error) {
	d, err := r.Resolve(ctx)
	return d.Digest, err
}

func (r *Repo) resolve(ctx context.Context) (v1.Descriptor, error) {
	if err := ctx.Err(); err != nil {
		return v1.Descriptor{}, err
	}
	if err := checkVersion(filepath.Join(r.ref.Dir, "oci-layout")); err != nil {
		return v1.Descriptor{}, err
	}
	b, err := readFile(filepath.Join(r.ref.Dir, "index.json"), maxManifest)
	if err != nil {
		return v1.Descriptor{}, err
	}
	ix, err := parseIndex(b)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("reading index.json: %w", err)
	}
	d, err := pick(ix, r.ref)
	if errors.Is(err, errNotListed) {
		// A manifest for one platform stands in an index that index.json lists.
		return r.describe(r.ref.Digest)
	}
	return d, err
}

// checkVersion says whether a file says that its folder is a layout of version 1.
func checkVersion(name string) error {
	b, err := readFile(name, 4096)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("not an OCI layout: %w", err)
	} else if err != nil {
		return err
	}
	var l struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	if !strings.HasPrefix(l.Version, "1.") {
		return fmt.Errorf("%w: OCI layout of version %.20q", ref.ErrUnsupported, l.Version)
	}
	return nil
}

// describe makes the descriptor of a manifest from the blob itself.
func (r *Repo) describe(h v1.Hash) (v1.Descriptor, error) {
	name, err := r.path(h)
	if err != nil {
		return v1.Descriptor{}, err
	}
	b, err := readFile(name, maxManifest)
	if err != nil {
		return v1.Descriptor{}, err
	}
	if err := blob.Verify(b, h); err != nil {
		return v1.Descriptor{}, fmt.Errorf("reading %s: %w", name, err)
	}
	kind, err := ref.Kind(b, "")
	if err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{MediaType: kind, Digest: h, Size: int64(len(b))}, nil
}

// Manifest is the manifest, index or configuration d describes, verified against its digest and size. More than 8 MiB
// are refused.
func (r *Repo) Manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	name, err := r.path(d.Digest)
	if err != nil {
		return nil, err
	}
	if d.Size < 0 || d.Size > maxManifest {
		return nil, fmt.Errorf("reading %s: its size is stated as %d, want 0 to %d", d.Digest, d.Size, maxManifest)
	}
	b, err := readFile(name, d.Size)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != d.Size {
		return nil, fmt.Errorf("reading %s: %w: it has %d bytes, want %d", name, blob.ErrDigestMismatch, len(b), d.Size)
	}
	if err := blob.Verify(b, d.Digest); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return b, nil
}

// Blob is the blob d describes. Nothing is checked before it is fetched; then its size is, but not its digest.
func (r *Repo) Blob(d v1.Descriptor) blob.Source { return &source{r, d} }

// path is the file of a blob. The digest is checked: it becomes part of the path.
func (r *Repo) path(h v1.Hash) (string, error) {
	if _, err := v1.NewHash(h.String()); err != nil {
		return "", err
	}
	return filepath.Join(r.ref.Dir, "blobs", h.Algorithm, h.Hex), nil
}

type source struct {
	repo *Repo
	desc v1.Descriptor
}

var _ blob.Source = (*source)(nil)

func (s *source) Size() int64 { return s.desc.Size }

// Fetch opens the blob's file for one range.
func (s *source) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := blob.CheckRange(s.desc.Size, off, n); err != nil {
		return nil, err
	}
	name, err := s.repo.path(s.desc.Digest)
	if err != nil {
		return nil, err
	}
	f, size, err := open(name)
	if err != nil {
		return nil, err
	}
	if size != s.desc.Size {
		_ = f.Close()
		return nil, fmt.Errorf("reading %s: %w: it has %d bytes, want %d", name, blob.ErrDigestMismatch, size, s.desc.Size)
	}
	return &section{ctx, io.NewSectionReader(f, off, n), n, f}, nil
}

// section reads a range of a file until its context ends.
type section struct {
	ctx  context.Context // of the Fetch: its end ends the reader
	r    *io.SectionReader
	left int64
	f    *os.File
}

func (s *section) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := s.r.Read(p)
	s.left -= int64(n)
	if err == io.EOF && s.left > 0 {
		err = fmt.Errorf("reading %s: %w", s.f.Name(), io.ErrUnexpectedEOF) // it was cut meanwhile
	}
	return n, err
}

func (s *section) Close() error { return s.f.Close() }

// open opens a regular file and tells its size. It doesn't wait for the other end of a pipe.
func open(name string) (*os.File, int64, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("opening %s: not a regular file", name)
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

// readFile reads a file of at most limit bytes.
func readFile(name string, limit int64) ([]byte, error) {
	f, size, err := open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > limit {
		return nil, fmt.Errorf("reading %s: it has %d bytes, more than %d", name, size, limit)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return b, nil
}
