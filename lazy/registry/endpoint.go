package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/registry/hosts"
)

// A server that failed is left out for failedTime if there is another, and one that gave wrong bytes for wrongTime.
const (
	failedTime = 30 * time.Second
	wrongTime  = 10 * time.Minute
)

// endpoint is a server that has the repository, or some of it.
type endpoint struct {
	session       *session
	ns            string // the registry that it stands for; "" is itself
	pull, resolve bool

	mu    sync.Mutex
	until time.Time // it is left out
}

// newEndpoints makes the endpoints of a repository.
func newEndpoints(repo name.Repository, o Options) ([]*endpoint, error) {
	registry := repo.RegistryStr()
	if len(o.Hosts) == 0 {
		h := hosts.Host{Root: &url.URL{Host: registry, Path: "/v2"}}
		return []*endpoint{{session: newSession(repo, h, o.Auth, o), pull: true, resolve: true}}, nil
	}
	var all []*endpoint
	for _, h := range o.Hosts {
		own := isOwn(h.Root, registry)
		e := &endpoint{pull: h.Pull, resolve: h.Resolve}
		auth := o.Auth
		if !own {
			auth, e.ns = o.HostAuth[h.Root.Host], registry
			if hosts.Hub(registry) {
				e.ns = "docker.io"
			}
		}
		at, err := name.NewRegistry(h.Root.Host) // a reference's first part would be one of Docker Hub's without a dot
		if err != nil {
			return nil, fmt.Errorf("asking %s: %w", h.Root.Host, err)
		}
		e.session = newSession(at.Repo(repo.RepositoryStr()), h, auth, o)
		all = append(all, e)
	}
	return all, nil
}

// isOwn tells whether root is of the registry's own server, however its port is put and whatever Docker Hub is called.
func isOwn(root *url.URL, registry string) bool {
	if hosts.Hub(registry) {
		host, port, _ := cutPort(root.Host)
		return hosts.Hub(strings.ToLower(host)) && orDefault(port, root.Scheme) == "443"
	}
	return sameHost(root, registry)
}

// url is where the server has a manifest or blob.
func (e *endpoint) url(kind, id string) *url.URL {
	u := e.session.url(kind, id)
	if e.ns != "" {
		u.RawQuery = url.Values{"ns": {e.ns}}.Encode()
	}
	return u
}

// leaveOut has others asked for a while.
func (e *endpoint) leaveOut(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if until := time.Now().Add(d); until.After(e.until) {
		e.until = until
	}
}

// failed notes that the server failed with err. That it hasn't got something says nothing about the rest.
func (e *endpoint) failed(err error) {
	switch {
	case errors.Is(err, ErrNotFound), errors.Is(err, context.Canceled):
	case errors.Is(err, blob.ErrDigestMismatch):
		e.leaveOut(wrongTime)
	default:
		e.leaveOut(failedTime)
	}
}

func (e *endpoint) out() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return time.Now().Before(e.until)
}

// each calls f with one endpoint after the other of those that are able to do what is wanted, until it succeeds.
func (r *Repo) each(ctx context.Context, able func(*endpoint) bool, f func(*endpoint) error) error {
	var all []*endpoint
	for _, e := range r.endpoints {
		if able(e) {
			all = append(all, e)
		}
	}
	if len(all) == 0 {
		return fmt.Errorf("asking registry %s: no server is configured that may be asked for this", r.ref.Context().RegistryStr())
	}
	var before error
	for _, e := range all[:len(all)-1] {
		if e.out() {
			continue
		}
		err := e.session.redacted(f(e))
		if err == nil {
			return nil
		}
		if cause := context.Cause(ctx); cause != nil {
			if blob.Temporary(cause) { // the server was silent for too long
				e.failed(cause)
			}
			return err
		}
		e.failed(err)
		before = err
	}
	e := all[len(all)-1]
	err := e.session.redacted(f(e))
	if err != nil && before != nil && ctx.Err() == nil {
		return fmt.Errorf("%w (and before: %v)", err, before)
	}
	return err
}

func pulls(e *endpoint) bool    { return e.pull }
func resolves(e *endpoint) bool { return e.resolve }

// transports are what carries requests to a host, and to others that it names.
func (o Options) transports(h hosts.Host) (home, away http.RoundTripper) {
	base := o.Transport
	if base == nil {
		base = NewTransport()
	}
	t, wrap := carrier(base)
	if t == nil || h.Key == "" {
		return base, base
	}
	own, others := t.derived(h)
	return wrap(own), wrap(others)
}

// carrier is the Transport within t, or nil, and puts around another one what is around it: transports that watch what goes through another
// one say so by these methods.
func carrier(t http.RoundTripper) (*Transport, func(http.RoundTripper) http.RoundTripper) {
	if w, ok := t.(interface {
		Unwrap() http.RoundTripper
		Wrap(http.RoundTripper) http.RoundTripper
	}); ok {
		inner, wrap := carrier(w.Unwrap())
		return inner, func(t http.RoundTripper) http.RoundTripper { return w.Wrap(wrap(t)) }
	}
	own, _ := t.(*Transport)
	return own, func(t http.RoundTripper) http.RoundTripper { return t }
}
