// Package layout reads images from OCI layouts: folders as the OCI image-spec's image-layout.md describes them.
//
// Everything in a layout is hostile: blobs are opened by a checked digest and nothing else, and indexes are bounded.
package layout

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/ref"
)

// maxManifest bounds an index, a manifest or a config, in bytes.
const maxManifest = 16 << 20

// ErrNotFound is wrapped where a layout has no such image or blob.
var ErrNotFound = errors.New("not in the layout")

const refName = "org.opencontainers.image.ref.name"

// Repo is an image of a layout. Its methods may be called concurrently.
type Repo struct{ r ref.Ref }

// Open names an image of a layout; it reads nothing yet.
func Open(r ref.Ref) (*Repo, error) {
	if r.Transport != ref.OCI {
		return nil, fmt.Errorf("opening %s: not an OCI layout", r)
	}
	return &Repo{r}, nil
}

// Resolve gives the descriptor of the image that the reference names: by digest, by tag, or the only one there is.
func (p *Repo) Resolve(ctx context.Context) (v1.Descriptor, error) {
	b, err := readBounded(filepath.Join(p.r.Dir, "index.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return v1.Descriptor{}, fmt.Errorf("%s is not an OCI layout: %w", p.r.Dir, err)
	}
	if err != nil {
		return v1.Descriptor{}, err
	}
	var ix v1.IndexManifest
	if err := json.Unmarshal(b, &ix); err != nil {
		return v1.Descriptor{}, fmt.Errorf("reading index.json of %s: %w", p.r.Dir, err)
	}
	var found []v1.Descriptor
	var tags []string
	for _, d := range ix.Manifests {
		name := d.Annotations[refName]
		tags = append(tags, name)
		switch {
		case p.r.Digest != v1.Hash{}:
			if d.Digest == p.r.Digest {
				found = append(found, d)
			}
		case p.r.Tag == "" || name == p.r.Tag || strings.HasSuffix(name, ":"+p.r.Tag):
			found = append(found, d)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return v1.Descriptor{}, fmt.Errorf("%s: the layout has %d images of that name: %q", p.r, len(found), tags)
	case p.r.Digest != v1.Hash{}: // it need not be listed
		st, err := os.Stat(p.blob(p.r.Digest))
		if err == nil {
			return v1.Descriptor{Digest: p.r.Digest, Size: st.Size()}, nil
		}
	}
	return v1.Descriptor{}, fmt.Errorf("%s: %w, which has %q", p.r, ErrNotFound, tags)
}

func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err == nil && len(b) > maxManifest {
		err = fmt.Errorf("%s has more than %d bytes", name, maxManifest)
	}
	return b, err
}

// blob is the path of a blob; a digest that is not a SHA-256 names none.
func (p *Repo) blob(h v1.Hash) string {
	if h.Algorithm != "sha256" || len(h.Hex) != 64 || strings.Trim(h.Hex, "0123456789abcdef") != "" {
		return filepath.Join(p.r.Dir, "blobs", "no-digest")
	}
	return filepath.Join(p.r.Dir, "blobs", h.Algorithm, h.Hex)
}

// Manifest reads a manifest, an index or a config and checks its size and digest.
func (p *Repo) Manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	b, err := readBounded(p.blob(d.Digest))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", d.Digest, notFound(err))
	}
	if d.Size > 0 && int64(len(b)) != d.Size {
		return nil, fmt.Errorf("%w: blob %s has %d bytes, its descriptor says %d", blob.ErrDigestMismatch, d.Digest, len(b), d.Size)
	}
	if h := sha256.Sum256(b); hex.EncodeToString(h[:]) != d.Digest.Hex {
		return nil, fmt.Errorf("%w: blob %s has sha256:%x", blob.ErrDigestMismatch, d.Digest, h)
	}
	return b, nil
}

func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}

// Blob gives ranges of a blob.
func (p *Repo) Blob(d v1.Descriptor) blob.Source { return &source{p.blob(d.Digest), d} }

type source struct {
	path string
	d    v1.Descriptor
}

func (s *source) Size() int64 { return s.d.Size }

func (s *source) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := blob.CheckRange(s.d.Size, off, n); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := os.Open(s.path)
	if err != nil {
		return nil, fmt.Errorf("opening blob %s: %w", s.d.Digest, notFound(err))
	}
	return &section{io.NewSectionReader(f, off, n), n, f, ctx}, nil
}

// section reads a range; a file that is too short is an error.
type section struct {
	r    *io.SectionReader
	left int64
	f    *os.File
	ctx  context.Context
}

func (s *section) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := s.r.Read(p)
	s.left -= int64(n)
	if err == io.EOF && s.left > 0 {
		err = fmt.Errorf("%s: %w", s.f.Name(), io.ErrUnexpectedEOF)
	}
	return n, err
}

func (s *section) Close() error { return s.f.Close() }
