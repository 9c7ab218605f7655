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
