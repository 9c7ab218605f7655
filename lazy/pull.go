package lazy

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/store"
)

// Pull says when a registry is asked what a tag is. The zero value is PullMissing.
type Pull string

const (
	// PullMissing asks for a tag whose image the cache hasn't got. Any other is what it was last, however long ago.
	PullMissing Pull = "missing"
	// PullNewer asks each time. If that fails, a tag that the cache knows is what it was last, with a warning event.
	PullNewer Pull = "newer"
	// PullAlways asks each time, and fails with the asking.
	PullAlways Pull = "always"
	// PullNever asks for no tag. One that the cache doesn't know is an error that wraps ErrUnknownTag. Contents are fetched all the same.
	PullNever Pull = "never"
)

// ParsePull reads one of the constants; "" is PullMissing.
func ParsePull(s string) (Pull, error) {
	switch p := cmp.Or(Pull(s), PullMissing); p {
	case PullMissing, PullNewer, PullAlways, PullNever:
		return p, nil
	}
	return "", fmt.Errorf("want missing, newer, always or never, not %.20q", s)
}

const (
	probeTime = 5 * time.Second  // for an answer, from a registry that could be done without
	renewTime = 20 * time.Second // and then for the manifests of a tag that has changed
)

// resolve gives the digest and bytes of the platform's manifest.
func (c *Cache) resolve(ctx context.Context, r ref.Ref, repo Repo, o OpenOptions, tell func(Event)) (v1.Hash, []byte, error) {
	p := o.Platform
	pull, err := ParsePull(string(o.Pull))
	if err != nil {
		return v1.Hash{}, nil, fmt.Errorf("opening %s: %w", r, err)
	}
	if r.Transport != ref.Registry {
		pull = PullNewer
	}
	last, lastErr := c.st.Ref(r.String(), p.String())
	var known []byte // nil: the cache doesn't know
	if lastErr == nil {
		if known, err = c.st.Blob(last.Manifest); err != nil {
			known = nil
		}
	}
	if known == nil && r.IsDigest() {
		last.Manifest = c.opened(r)
		if known, err = c.st.Blob(last.Manifest); err != nil {
			known = nil
		}
	}
	kept := v1.Hash{Algorithm: "sha256", Hex: last.Manifest}
	if known != nil && repo == (offline{}) {
		return kept, known, nil
	}
	var asking bool
	switch {
	case r.IsDigest(), repo == (offline{}): // a digest means the same for ever
		asking = known == nil
	case pull == PullNever:
		if known == nil {
			return v1.Hash{}, nil, fmt.Errorf("opening %s: %w", r, ErrUnknownTag)
		}
	case pull == PullMissing:
		asking = known == nil || !c.has(last.Manifest)
	default:
		asking = true
	}
	if asking {
		raw, d, root, err := c.ask(ctx, repo, p, pull, last, known)
		switch {
		case err == nil:
			if _, err := c.st.PutBlob(raw); err != nil {
				return v1.Hash{}, nil, fmt.Errorf("keeping manifest of %s: %w", r, err)
			}
			next := store.Ref{Ref: r.String(), Platform: p.String(), Manifest: d.Hex, Root: root.String(), Insecure: o.Insecure, HostsDirs: o.HostsDirs, Resolved: time.Now().UTC()}
			if lastErr == nil && last.Manifest == d.Hex {
				next.Resolved = last.Resolved
			}
			return d, raw, c.keepRef(next, last)
		case ctx.Err() != nil || known == nil || pull != PullNewer:
			return v1.Hash{}, nil, err
		}
		tell(Event{Stage: "warning", Text: fmt.Sprintf("%v; using what %s was on %s", err, r, last.Asked.Local().Format(time.DateTime))})
	}
	if lastErr == nil && (last.Insecure != o.Insecure || last.HostsDirs != o.HostsDirs) {
		next := last
		next.Insecure, next.HostsDirs = o.Insecure, o.HostsDirs
		return kept, known, c.keepRef(next, last)
	}
	return kept, known, nil
}

// keepRef remembers what a reference is, and when that was said, now or at next.Asked. What is on disk already isn't written again.
func (c *Cache) keepRef(next, last store.Ref) error {
	var err error
	if next.Said() == last.Said() {
		err = c.st.Asked(last)
	} else {
		err = c.st.PutRef(next)
	}
	if err != nil {
		return fmt.Errorf("keeping digest of %s: %w", next.Ref, err)
	}
	return nil
}

// ask asks what a reference is. known, which may be nil, is the manifest that it was last.
func (c *Cache) ask(ctx context.Context, repo Repo, p ref.Platform, pull Pull, last store.Ref, known []byte) ([]byte, v1.Hash, v1.Hash, error) {
	bounded := known != nil && pull == PullNewer
	within := func(d time.Duration) (context.Context, context.CancelFunc) {
		if !bounded {
			return ctx, func() {}
		}
		return context.WithTimeoutCause(ctx, d, fmt.Errorf("%w: no answer within %v", ErrUnreachable, d))
	}
	if known != nil && last.Root != "" {
		pctx, cancel := within(probeTime)
		now, err := repo.Probe(pctx)
		err = because(pctx, err)
		cancel()
		switch {
		case err == nil && now.String() == last.Root:
			return known, v1.Hash{Algorithm: "sha256", Hex: last.Manifest}, now, nil
		case err != nil && (bounded || ctx.Err() != nil):
			return nil, v1.Hash{}, v1.Hash{}, err
		}
	}
	rctx, cancel := within(renewTime)
	defer cancel()
	raw, manifest, root, err := c.fetchManifest(rctx, repo, p)
	return raw, manifest, root, because(rctx, err)
}

// because is err, or why ctx ended if that is what err is from.
func because(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// has tells whether the cache has the image of a manifest.
func (c *Cache) has(manifest string) bool {
	rec, err := c.st.Record(manifest)
	if err != nil {
		return false
	}
	_, err = os.Stat(c.st.ImageDir(rec.Image))
	return err == nil
}

// opened is the manifest, SHA-256 in hex, that a reference by digest names, if an image was opened by it, whatever its name was then.
func (c *Cache) opened(r ref.Ref) string {
	d := r.Digest.Hex
	if n, ok := r.Name.(name.Digest); ok {
		d = strings.TrimPrefix(n.DigestStr(), "sha256:")
	}
	if _, err := c.st.Record(d); err != nil {
		return ""
	}
	return d
}

// fetchManifest gets the manifest of a platform, and tells what the reference names: that, or an index.
func (c *Cache) fetchManifest(ctx context.Context, repo Repo, p ref.Platform) (raw []byte, manifest, root v1.Hash, _ error) {
	fail := func(err error) ([]byte, v1.Hash, v1.Hash, error) { return nil, v1.Hash{}, v1.Hash{}, err }
	d, err := repo.Resolve(ctx)
	if err != nil {
		return fail(err)
	}
	root = d.Digest
	raw, err = repo.Manifest(ctx, d)
	if err != nil {
		return fail(err)
	}
	for depth := 0; isIndex(d.MediaType, raw); depth++ {
		if depth == 3 {
			return fail(fmt.Errorf("index %s: indexes nest too deep", d.Digest))
		}
		var ix v1.IndexManifest
		if err := json.Unmarshal(raw, &ix); err != nil {
			return fail(fmt.Errorf("reading index %s: %w", d.Digest, err))
		}
		if d, err = ref.Select(p, ix.Manifests); err != nil {
			return fail(err)
		}
		if raw, err = repo.Manifest(ctx, d); err != nil {
			return fail(err)
		}
	}
	if d.Digest.Algorithm != "sha256" {
		return fail(fmt.Errorf("manifest %s: digests other than SHA-256 are not supported", d.Digest))
	}
	return raw, d.Digest, root, nil
}
