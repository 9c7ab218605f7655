package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/ref"
)

// maxManifest is the largest manifest, index or configuration that is read, in bytes. Registries are asked to accept
// manifests of 4 MiB by the distribution specification; configurations have no limit there.
const maxManifest = 8 << 20

// accept lists the media types of the manifests and indexes that are understood.
const accept = string(types.OCIImageIndex) + ", " + string(types.OCIManifestSchema1) + ", " +
	string(types.DockerManifestList) + ", " + string(types.DockerManifestSchema2)

// Resolve asks the registry what the reference is now: the descriptor of a manifest or an index. It takes one request,
// whose answer is kept for Manifest. A digest vouches for itself: any server that contents are fetched from is asked for one, and
// the next if one gives something else.
func (r *Repo) Resolve(ctx context.Context) (v1.Descriptor, error) {
	id := r.ref.Identifier()
	what := "manifest " + id
	able := resolves
	var want v1.Hash
	if d, ok := r.ref.(name.Digest); ok {
		able = pulls
		var err error
		if want, err = v1.NewHash(d.DigestStr()); err != nil {
			return v1.Descriptor{}, fmt.Errorf("resolving %s: %w", r.ref.Name(), err)
		}
	}
	var found root
	err := r.retry.Do(ctx, func(ctx context.Context, alive func()) error {
		return r.each(ctx, able, func(e *endpoint) error {
			resp, err := e.get(ctx, what, "manifests", id, accept)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			body, err := readAll(ctx, what, resp, maxManifest, alive)
			if err != nil {
				return err
			}
			if want != (v1.Hash{}) {
				err = blob.Verify(body, want)
			}
			var desc v1.Descriptor
			if err == nil {
				desc, err = describe(body, resp.Header)
			}
			if err != nil {
				return &Error{What: what, URL: redact(resp.Request.URL), err: err}
			}
			found = root{desc, body}
			return nil
		})
	})
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("resolving %s: %w", r.ref.Name(), err)
	}
	if want != (v1.Hash{}) {
		found.desc.Digest = want
	}
	r.mu.Lock()
	r.root = found
	r.mu.Unlock()
	return found.desc, nil
}

// Probe asks by a HEAD request what the reference's digest is now. It is zero where the registry doesn't tell by itself (its header
// Docker-Content-Digest is no part of the distribution specification), or has no HEAD. Failures that may pass are met as by Resolve, but
// a registry that can't be reached is one at once.
func (r *Repo) Probe(ctx context.Context) (v1.Hash, error) {
	id := r.ref.Identifier()
	what := "digest of manifest " + id
	var found v1.Hash
	err := r.retry.Do(ctx, func(ctx context.Context, _ func()) error {
		err := r.each(ctx, resolves, func(e *endpoint) error {
			resp, err := e.do(ctx, http.MethodHead, what, e.url("manifests", id).String(), http.Header{"Accept": {accept}})
			if err != nil {
				return err
			}
			defer discard(resp)
			if resp.StatusCode != http.StatusOK {
				if err := e.session.refusal(what, resp, e.session.home(resp.Request.URL)); blob.Temporary(err) {
					return err
				}
				return nil // whether it is there, GET tells for certain
			}
			if h, err := v1.NewHash(resp.Header.Get("Docker-Content-Digest")); err == nil && h.Algorithm == "sha256" {
				found = h
			}
			return nil
		})
		if errors.Is(err, ErrUnreachable) {
			return final{err}
		}
		return err
	})
	if err != nil {
		return v1.Hash{}, fmt.Errorf("resolving %s: %w", r.ref.Name(), err)
	}
	return found, nil
}

// final is an error that isn't worth another attempt.
type final struct{ error }

func (e final) Unwrap() error   { return e.error }
func (e final) Temporary() bool { return false }

// Manifest is the manifest, index or configuration d describes, verified against its digest and size. More than 8 MiB
// are refused. The result must not be changed.
func (r *Repo) Manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	if err := checkDescriptor(d); err != nil {
		return nil, err
	}
	if d.Size > maxManifest {
		return nil, fmt.Errorf("getting %s: it has %d bytes, more than %d", d.Digest, d.Size, maxManifest)
	}
	r.mu.Lock()
	known := r.root
	r.mu.Unlock()
	if known.desc.Digest == d.Digest && known.desc.Size == d.Size {
		return known.body, nil
	}
	if int64(len(d.Data)) == d.Size && blob.Verify(d.Data, d.Digest) == nil {
		return d.Data, nil
	}
	what, kind, accepted := "blob "+d.Digest.String(), "blobs", ""
	if d.MediaType.IsImage() || d.MediaType.IsIndex() {
		what, kind, accepted = "manifest "+d.Digest.String(), "manifests", accept
	}
	var body []byte
	err := r.retry.Do(ctx, func(ctx context.Context, alive func()) error {
		return r.each(ctx, pulls, func(e *endpoint) error {
			resp, err := e.get(ctx, what, kind, d.Digest.String(), accepted)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if body, err = readAll(ctx, what, resp, d.Size, alive); err != nil {
				return err
			}
			if int64(len(body)) != d.Size {
				err = fmt.Errorf("%w: it has %d bytes, want %d", blob.ErrDigestMismatch, len(body), d.Size)
			} else {
				err = blob.Verify(body, d.Digest)
			}
			if err != nil {
				return &Error{What: what, URL: redact(resp.Request.URL), err: err}
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return body, nil
}

// get asks for a manifest or blob as a whole. The caller closes the body.
func (e *endpoint) get(ctx context.Context, what, kind, id, accept string) (*http.Response, error) {
	h := http.Header{}
	if accept != "" {
		h.Set("Accept", accept)
	}
	resp, err := e.do(ctx, http.MethodGet, what, e.url(kind, id).String(), h)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer discard(resp)
		return nil, e.session.refusal(what, resp, e.session.home(resp.Request.URL))
	}
	return resp, nil
}

// do sends a request without a body; the caller judges the status and closes the answer's.
func (e *endpoint) do(ctx context.Context, method, what, rawURL string, h http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, rawURL, nil)
	if err != nil {
		return nil, failure(what, nil, err)
	}
	req.Header = h
	// Blobs are wanted as they are stored: no transport may compress them on the way.
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := e.session.client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, failure(what, req.URL, err)
	}
	return resp, nil
}

// readAll reads a body of at most limit bytes.
func readAll(ctx context.Context, what string, resp *http.Response, limit int64, alive func()) ([]byte, error) {
	if resp.ContentLength > limit {
		return nil, &Error{What: what, URL: redact(resp.Request.URL),
			err: fmt.Errorf("it has %d bytes, more than %d", resp.ContentLength, limit)}
	}
	var buf bytes.Buffer
	_, err := io.Copy(&buf, io.LimitReader(&heartbeat{resp.Body, alive}, limit+1))
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, failure(what, resp.Request.URL, err)
	case int64(buf.Len()) > limit:
		return nil, &Error{What: what, URL: redact(resp.Request.URL), err: fmt.Errorf("it has more than %d bytes", limit)}
	}
	return buf.Bytes(), nil
}

// heartbeat calls alive after each read that brought something.
type heartbeat struct {
	r     io.Reader
	alive func()
}

func (h *heartbeat) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	if n > 0 {
		h.alive()
	}
	return n, err
}

// describe makes the descriptor of a manifest or index that came by tag.
func describe(body []byte, h http.Header) (v1.Descriptor, error) {
	said, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		said = ""
	}
	mt, err := ref.Kind(body, types.MediaType(said))
	if err != nil {
		return v1.Descriptor{}, err
	}
	digest, size, err := v1.SHA256(bytes.NewReader(body))
	if err != nil {
		return v1.Descriptor{}, err
	}
	if claim := h.Get("Docker-Content-Digest"); strings.HasPrefix(claim, "sha256:") && claim != digest.String() {
		return v1.Descriptor{}, fmt.Errorf("%w: the registry says %s, the manifest is %s", blob.ErrDigestMismatch,
			printable(claim), digest)
	}
	return v1.Descriptor{MediaType: mt, Digest: digest, Size: size}, nil
}

// checkDescriptor says whether d can be asked for: its digest becomes a part of a URL.
func checkDescriptor(d v1.Descriptor) error {
	if _, err := v1.NewHash(d.Digest.String()); err != nil {
		return fmt.Errorf("checking descriptor: %w", err)
	}
	if d.Size < 0 {
		return fmt.Errorf("checking descriptor of %s: its size is %d", d.Digest, d.Size)
	}
	return nil
}
