package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/layout"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/registry"
	"github.com/pexfs/pex/lazy/registry/hosts"
	"github.com/pexfs/pex/lazy/store"
)

// repo is a Repo whose blobs are fetched again, from where they broke off, after faults that may pass; and a fault that doesn't is met
// by one for all.
type repo struct {
	lazy.Repo
	stalls   *blob.Stalls // or nil
	circuits *blob.Circuits

	mu    sync.Mutex // guards blobs
	blobs map[blobID]blob.Source
}

type blobID struct {
	digest v1.Hash
	size   int64
}

const maxBlobs = 8192 // that something is remembered of

// Distrust is told that wrong bytes came.
func (r *repo) Distrust(digest v1.Hash) {
	if d, ok := r.Repo.(interface{ Distrust(v1.Hash) }); ok {
		d.Distrust(digest)
	}
}

func (r *repo) Blob(d v1.Descriptor) blob.Source {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := blobID{d.Digest, d.Size}
	if src := r.blobs[id]; src != nil {
		return src
	}
	if r.blobs == nil || len(r.blobs) >= maxBlobs {
		r.blobs = make(map[blobID]blob.Source)
	}
	src := r.Repo.Blob(d)
	again := blob.Retry(src, blob.Policy{})
	if at, ok := src.(interface{ Where() string }); ok { // a folder is asked as often as one likes
		once := blob.Retry(src, blob.Policy{Attempts: 1})
		if r.stalls != nil {
			again, once = r.stalls.Watch(again, at.Where), r.stalls.Watch(once, at.Where)
		}
		again = r.circuits.Guard(again, once, at.Where)
	}
	r.blobs[id] = again
	return again
}

// tellStalls logs what readers and fillers wait for.
func tellStalls(log *slog.Logger) *blob.Stalls {
	return blob.NewStalls(func(s blob.Stall) {
		at := []any{"url", s.Where, "off", s.Off, "n", s.N, "waited", s.Waited.Round(100 * time.Millisecond), "fetches", s.Fetches}
		if s.Over {
			log.Info("data comes again", at...)
		} else {
			log.Warn("no data comes", at...)
		}
	})
}

// Origin is where the blobs come from, for lazy.
func (r *repo) Origin() string { return lazy.Origin(r.Repo) }

// warm has connections opened that an image's layers will need.
func warm(ctx context.Context, r lazy.Repo) {
	if of, ok := r.(*repo); ok {
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
	at, err := ref.Parse(best.Ref)
	if err != nil {
		return nil, err
	}
	return s.openRepo(ctx, at, RepoOptions{Auth: auth, Insecure: best.Insecure, HostsDirs: best.HostsDirs})
}

// RepoOptions say how to get at a repository.
type RepoOptions struct {
	// Auth are the credentials for its registry, and HostAuth those for other servers that stand for it, by host and port. What is nil is
	// looked for: so an image whose client is gone can still be filled after a restart.
	Auth     *authn.AuthConfig
	HostAuth map[string]authn.AuthConfig
	// Credentials looks for them; nil: registry.Credentials, in the files of the user that runs this process.
	Credentials func(context.Context, ref.Ref) (authn.AuthConfig, error)

	HostsDirs string            // folders of hosts.toml: see hosts.Dirs
	Ignored   func(string)      // is told what is left out of these: see hosts.Find; may be nil
	Insecure  bool              // plain HTTP is permitted with a registry that isn't on this machine
	Transport http.RoundTripper // see registry.Options
	Stalls    *blob.Stalls      // are told of what hangs; may be nil
	Circuits  *blob.Circuits    // what is known to fail; nil: nothing yet
}

// OpenRepo opens where a reference points to.
func OpenRepo(ctx context.Context, r ref.Ref, o RepoOptions) (lazy.Repo, error) {
	switch r.Transport {
	case ref.OCI:
		l, err := layout.Open(r)
		if err != nil {
			return nil, err
		}
		return &repo{Repo: l}, nil
	case ref.Registry:
		servers, err := hosts.Find(hosts.Dirs(o.HostsDirs), r.Name.Context().RegistryStr(), o.Ignored)
		if err != nil {
			return nil, err
		}
		if o.Credentials == nil {
			o.Credentials = registry.Credentials
		}
		if o.Auth == nil {
			a, err := o.Credentials(ctx, r)
			if err != nil {
				return nil, err
			}
			o.Auth = &a
		}
		if o.HostAuth == nil {
			if o.HostAuth, err = credentials(ctx, r, servers, o.Credentials); err != nil {
				return nil, err
			}
		}
		g, err := registry.Open(r, registry.Options{
			Auth: *o.Auth, Insecure: o.Insecure, Transport: o.Transport, UserAgent: "pex", Hosts: servers, HostAuth: o.HostAuth,
		})
		if err != nil {
			return nil, err
		}
		if o.Circuits == nil {
			o.Circuits = new(blob.Circuits)
		}
		return &repo{Repo: g, stalls: o.Stalls, circuits: o.Circuits}, nil
	}
	return nil, fmt.Errorf("reference %s: no such transport", r)
}

// HostCredentials finds this user's credentials for servers that stand for a reference's registry, by host and port.
func HostCredentials(ctx context.Context, r ref.Ref, dirs string) (map[string]authn.AuthConfig, error) {
	_, auth, err := Hosts(ctx, r, dirs)
	return auth, err
}

// Hosts finds the servers that stand for a reference's registry, and this user's credentials for them, by host and port.
func Hosts(ctx context.Context, r ref.Ref, dirs string) ([]hosts.Host, map[string]authn.AuthConfig, error) {
	servers, err := hosts.Find(hosts.Dirs(dirs), r.Name.Context().RegistryStr(), nil)
	if err != nil {
		return nil, nil, err
	}
	auth, err := credentials(ctx, r, servers, registry.Credentials)
	return servers, auth, err
}

func credentials(ctx context.Context, r ref.Ref, servers []hosts.Host, find func(context.Context, ref.Ref) (authn.AuthConfig, error)) (map[string]authn.AuthConfig, error) {
	all := make(map[string]authn.AuthConfig)
	for _, h := range servers {
		there, err := name.NewRegistry(h.Root.Host) // a reference's first part would be one of Docker Hub's without a dot
		if err != nil {
			return nil, fmt.Errorf("finding credentials for %s: %w", h.Root.Host, err)
		}
		r.Name = there.Repo(r.Name.Context().RepositoryStr()).Tag("latest") // only the repository counts
		a, err := find(ctx, r)
		if err != nil {
			return nil, err
		}
		if a != (authn.AuthConfig{}) {
			all[h.Root.Host] = a
		}
	}
	return all, nil
}

// warnings are logged once each. The zero value has logged none.
type warnings struct {
	mu   sync.Mutex
	told map[string]bool
}

const maxWarnings = 256 // that are remembered

// warn logs a warning, unless it was.
func (w *warnings) warn(log *slog.Logger, text string) {
	w.mu.Lock()
	known := w.told[text]
	if !known {
		if w.told == nil || len(w.told) >= maxWarnings {
			w.told = make(map[string]bool)
		}
		w.told[text] = true
	}
	w.mu.Unlock()
	if !known {
		log.Warn(text)
	}
}
