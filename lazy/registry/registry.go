// Package registry reads images from registries that speak the OCI distribution specification (v1.1) or docker's, its
// ancestor: manifests, configurations, and ranges of layers. It never writes to one.
//
// Other servers may stand in front of a registry's own (Options.Hosts). They are tried in order; one that fails is left out for a while.
// What they give is believed as far as its digest vouches for it, and what a tag is only if they are trusted with that.
//
// A Repo authenticates once with each, however many ask, and again when its token has expired. Credentials go to the registry's
// own host and to the token server it names, never to a host that it redirects to. Plain HTTP is spoken with loopback
// addresses and, where Options say so, with other registries; from HTTPS there is no way down to it. All methods may be
// called concurrently.
package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/registry/hosts"
)

// Options say how to speak with a registry. The zero value is anonymous.
type Options struct {
	// Auth is sent to the registry when it asks for it. Clients get it from Credentials.
	Auth authn.AuthConfig
	// Transport carries the requests; nil: one from NewTransport. Repos that share one share its connections.
	Transport http.RoundTripper
	// Insecure permits plain HTTP. Loopback addresses need no permission.
	Insecure bool
	// Retry bounds the attempts at handshakes and manifests. Blobs are not retried here: see blob.Retry.
	Retry blob.Policy
	// UserAgent names the program to the registry.
	UserAgent string
	// Hosts are the servers to ask, in this order; none: the registry's own. See hosts.Find.
	Hosts []hosts.Host
	// HostAuth are the credentials for those that aren't the registry's own, by host and port. Each goes to its host only.
	HostAuth map[string]authn.AuthConfig
}

// Repo is one image's repository.
type Repo struct {
	ref       name.Reference
	endpoints []*endpoint       // in the order in which they are asked; the last one always is
	transport http.RoundTripper // as Options have it
	retry     blob.Policy

	mu      sync.Mutex // guards what follows
	root    root       // what Resolve found last
	sources map[blobID]*source
}

type blobID struct {
	digest v1.Hash
	size   int64
}

// maxSources is how many blobs of a repository something is remembered of: where they are, and that they aren't.
const maxSources = 8192

type root struct {
	desc v1.Descriptor
	body []byte
}

// Open prepares to read the image r names. It sends nothing: a registry that is down is noticed by the first request.
func Open(r ref.Ref, o Options) (*Repo, error) {
	if r.Transport != ref.Registry || r.Name == nil {
		return nil, fmt.Errorf("opening %v: not a reference to a registry", r)
	}
	all, err := newEndpoints(r.Name.Context(), o)
	if err != nil {
		return nil, fmt.Errorf("opening %v: %w", r, err)
	}
	return &Repo{ref: r.Name, endpoints: all, transport: o.Transport, retry: o.Retry}, nil
}

// Origin is the registry, by host and port.
func (r *Repo) Origin() string { return r.ref.Context().RegistryStr() }

// loopback says whether host, with or without a port, is this machine by its form alone: "localhost", 127.0.0.0/8, ::1.
func loopback(host string) bool {
	if h, port, ok := cutPort(host); ok && port != "" {
		host = h
	}
	host = strings.Trim(host, "[]")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// cutPort cuts host:port; ok is false where there is no port.
func cutPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") || strings.Count(s, ":") > 1 && !strings.HasPrefix(s, "[") {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// Blob is the blob d describes. Nothing is checked before it is fetched, and its bytes never are: that is for whoever
// knows their digests. Sources of the same blob are one.
func (r *Repo) Blob(d v1.Descriptor) blob.Source {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := blobID{d.Digest, d.Size}
	s := r.sources[id]
	if s == nil {
		if r.sources == nil || len(r.sources) >= maxSources {
			r.sources = make(map[blobID]*source)
		}
		s = newSource(r, d)
		r.sources[id] = s
	}
	return s
}

// errContext is err, or ctx's own when it has ended: what the reason was for a request to fail then is of no interest.
func errContext(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil && err != nil && !errors.Is(err, cause) {
		return cause
	}
	return err
}
