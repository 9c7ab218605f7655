package daemon

import (
	"context"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/layout"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/registry"
	"github.com/pexfs/pex/lazy/store"
)

// repo is a Repo whose blobs are fetched again, from where they broke off, after faults that may pass.
type repo struct{ lazy.Repo }

func (r repo) Blob(d v1.Descriptor) blob.Source { return blob.Retry(r.Repo.Blob(d), blob.Policy{}) }

// warm has connections opened that an image's layers will need.
func warm(ctx context.Context, r lazy.Repo) {
	if of, ok := r.(repo); ok {
		r = of.Repo
	}
	if w, ok := r.(interface{ Warm(context.Context) }); ok {
		w.Warm(ctx)
	}
}

// repoOf opens where an image came from: by the reference of, or else by the one of those that stand for the image whose registry was asked
// last, as it was permitted to speak with it then. auth are the credentials for of's registry, and go to no other.
func (s *server) repoOf(ctx context.Context, info store.Info, of string, auth *authn.AuthConfig) (lazy.Repo, error) {
	refs, err := s.st.Refs()
	if err != nil {
		return nil, err
	}
	best := store.Ref{Ref: info.Ref}
	for _, r := range refs {
		if rec, err := s.st.Record(r.Manifest); err != nil || rec.Image != info.Key {
			continue
		}
		if r.Ref == of || best.Ref != of && r.Asked.After(best.Asked) {
			best = r
		}
	}
	if best.Ref != of {
		auth = nil
	}
	name, err := ref.Parse(best.Ref)
	if err != nil {
		return nil, err
	}
	return OpenRepo(ctx, name, auth, best.Insecure, s.transport)
}

// OpenRepo opens where a reference points to. Without credentials it looks for them itself, in the files of the user
// that runs this process: so an image whose client is gone can still be filled after a restart.
func OpenRepo(ctx context.Context, r ref.Ref, auth *authn.AuthConfig, insecure bool, t http.RoundTripper) (lazy.Repo, error) {
	switch r.Transport {
	case ref.OCI:
		l, err := layout.Open(r)
		if err != nil {
			return nil, err
		}
		return repo{l}, nil
	case ref.Registry:
		if auth == nil {
			a, err := registry.Credentials(ctx, r)
			if err != nil {
				return nil, err
			}
			auth = &a
		}
		g, err := registry.Open(r, registry.Options{Auth: *auth, Insecure: insecure, Transport: t, UserAgent: "pex"})
		if err != nil {
			return nil, err
		}
		return repo{g}, nil
	}
	return nil, fmt.Errorf("reference %s: no such transport", r)
}
