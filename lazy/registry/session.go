package registry

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/pexfs/pex/lazy/registry/hosts"
)

var (
	errPlainHTTP = errors.New("plain HTTP is not permitted here")
	errRedirects = errors.New("too many redirects")
)

// session knows how a registry wants to be spoken to about one repository, and finds it out once however many ask. As a
// http.RoundTripper it puts the right scheme and credentials on requests to the registry, and on no others.
type session struct {
	repo   name.Repository   // at the server, which may be another than the reference's registry
	root   *url.URL          // of the server's API; without a scheme it is to be found out
	header http.Header       // that the server is sent beside
	plain  bool              // plain HTTP is permitted
	base   http.RoundTripper // without credentials
	client *http.Client      // over the session

	// turn is held while speaking with registry or token server to change the state. A channel, so that waiting for it
	// ends with a context. Taken before mu.
	turn  chan struct{}
	mu    sync.Mutex
	state state
	auth  authn.AuthConfig
	given []string // tokens of the last states
}

// state is what a session has found out. It is replaced, never changed.
type state struct {
	challenge *transport.Challenge // nil: nothing yet
	token     string               // of a bearer challenge
	refresh   string               // another credential for tokens, where the token server gave one
	failures  int                  // attempts to change the state that failed
	failure   error                // of the last of them
}

// newSession makes a session with a host, which may be the registry of repo, or another that has the same.
func newSession(repo name.Repository, h hosts.Host, auth authn.AuthConfig, o Options) *session {
	s := &session{repo: repo, root: h.Root, header: h.Header, auth: auth, turn: make(chan struct{}, 1)}
	s.plain = h.Root.Scheme == "http" || h.Root.Scheme == "" && (o.Insecure || loopback(h.Root.Host))
	home, away := o.transports(h)
	s.base = &borders{
		s:    s,
		home: &guard{base: home, plain: s.plain, agent: o.UserAgent, header: h.Header},
		away: &guard{base: away, plain: s.plain, agent: o.UserAgent},
	}
	s.client = &http.Client{Transport: s, CheckRedirect: limitRedirects}
	return s
}

// borders is a http.RoundTripper that shows client certificates and a host's own headers to that host only.
type borders struct {
	s          *session
	home, away http.RoundTripper
}

func (b *borders) RoundTrip(req *http.Request) (*http.Response, error) {
	if b.s.home(req.URL) {
		return b.home.RoundTrip(req)
	}
	return b.away.RoundTrip(req)
}

// RoundTripper is what carries the requests of a Repo beneath authentication: o.Transport, or a new one, that names the
// program and refuses plain HTTP where that isn't permitted. It is for other clients of the same registry.
func (o Options) RoundTripper(repo name.Repository) http.RoundTripper {
	g := &guard{base: o.Transport, plain: o.Insecure || loopback(repo.RegistryStr()), agent: o.UserAgent}
	if g.base == nil {
		g.base = NewTransport()
	}
	return g
}

func limitRedirects(_ *http.Request, via []*http.Request) error {
	if len(via) >= 8 {
		return errRedirects
	}
	return nil
}

// guard lets plain HTTP through only where it is permitted, and names the program.
type guard struct {
	base   http.RoundTripper
	plain  bool
	agent  string // "" is pex
	header http.Header
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !(req.URL.Scheme == "http" && g.plain) {
		return nil, fmt.Errorf("%w: %s", errPlainHTTP, redact(req.URL))
	}
	req = req.Clone(req.Context())
	for k, v := range g.header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", cmp.Or(g.agent, "pex"))
	return g.base.RoundTrip(req)
}

// RoundTrip implements http.RoundTripper for requests without a body.
func (s *session) RoundTrip(req *http.Request) (*http.Response, error) {
	if !s.home(req.URL) {
		return s.base.RoundTrip(req)
	}
	ctx := req.Context()
	var resp *http.Response
	st, err := s.update(ctx, func(st state) bool { return st.challenge != nil }, func(ctx context.Context, st state) (next state, err error) {
		next, resp, err = s.handshake(ctx, st, req)
		return next, err
	})
	if err != nil || resp != nil {
		return resp, err
	}
	resp, err = s.send(req, st)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	// The token has expired, or this repository asks for more than the registry's root does.
	asked, err := challenge(ctx, s.repo.Registry, resp)
	if err != nil || asked.Scheme == "" || isBasic(asked) && isBasic(st.challenge) {
		return resp, nil
	}
	discard(resp)
	st, err = s.update(ctx, func(now state) bool { return now.challenge != st.challenge || now.token != st.token },
		func(ctx context.Context, st state) (state, error) {
			st.challenge = asked
			return s.authenticate(ctx, st)
		})
	if err != nil {
		return nil, err
	}
	return s.send(req, st)
}

// send sends req to the registry as st has it.
func (s *session) send(req *http.Request, st state) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.URL.Scheme = scheme(st.challenge.Insecure)
	auth := s.credentials()
	switch {
	case st.token != "":
		req.Header.Set("Authorization", "Bearer "+st.token)
	case !isBasic(st.challenge):
	case auth.RegistryToken != "":
		req.Header.Set("Authorization", "Bearer "+auth.RegistryToken)
	case auth.Username != "":
		req.SetBasicAuth(auth.Username, auth.Password)
	case auth.Auth != "":
		req.Header.Set("Authorization", "Basic "+auth.Auth)
	}
	return s.base.RoundTrip(req)
}

func scheme(insecure bool) string {
	if insecure {
		return "http"
	}
	return "https"
}

func isBasic(c *transport.Challenge) bool { return c != nil && strings.EqualFold(c.Scheme, "basic") }

// update gives a state that is done. If it isn't, one caller at a time calls change for it. Whoever waited for a change
// that failed gets that failure, instead of trying the same after it; a change that ended with its caller's context says
// nothing to others.
func (s *session) update(ctx context.Context, done func(state) bool, change func(context.Context, state) (state, error)) (state, error) {
	before := s.load()
	if done(before) {
		return before, nil
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return state{}, ctx.Err()
	}
	now := s.load()
	switch {
	case done(now):
		return now, nil
	case now.failures != before.failures:
		return state{}, now.failure
	}
	next, err := change(ctx, now)
	switch {
	case err == nil:
		s.store(next)
		return next, nil
	case ctx.Err() != nil:
		return state{}, ctx.Err()
	}
	now.failures++
	now.failure = err
	s.store(now)
	return state{}, err
}

func (s *session) load() state {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

func (s *session) store(st state) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = st
	for _, token := range []string{st.token, st.refresh} {
		if !slices.Contains(s.given, token) {
			s.given = append(s.given, token)
		}
	}
	s.given = s.given[max(len(s.given)-maxGiven, 0):]
}

func (s *session) credentials() authn.AuthConfig {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.auth
}

// handshake finds out the registry's scheme and how it authenticates, by req if that is answered as registries do: then no time is lost
// with asking. resp is the answer to req, or nil if it is still to be sent.
func (s *session) handshake(ctx context.Context, st state, req *http.Request) (_ state, resp *http.Response, _ error) {
	schemes := []string{"https"}
	if s.root.Scheme != "" {
		schemes = []string{s.root.Scheme}
	} else if s.plain {
		if _, port, _ := cutPort(s.root.Host); port == "" || port == "443" {
			schemes = []string{"https", "http"}
		} else {
			schemes = []string{"http", "https"}
		}
	}
	var failed error
	for _, scheme := range schemes {
		c, resp, err := s.attempt(ctx, scheme, req)
		if err == nil {
			st.challenge = c
			next, err := s.authenticate(ctx, st)
			return next, resp, err
		}
		// A TLS client at a plain server says less than the plain client does.
		if failed == nil || !errors.As(err, new(tls.RecordHeaderError)) {
			failed = err
		}
		if ctx.Err() != nil || s.decided(err) {
			break
		}
	}
	return state{}, nil, failed
}

// decided says that an answer came from a registry, so that another scheme need not be tried.
func (s *session) decided(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status != 0 && e.Status != http.StatusBadRequest
}

// attempt sends req without credentials. An answer that is all of what was asked for, or asks for credentials, tells as much as that to a
// ping would; what else a proxy, another scheme's server or an overloaded one says is for the ping to judge. resp is nil if req is
// to be sent again, with credentials.
func (s *session) attempt(ctx context.Context, scheme string, req *http.Request) (c *transport.Challenge, resp *http.Response, err error) {
	req = req.Clone(ctx)
	req.URL.Scheme = scheme
	resp, err = s.base.RoundTrip(req)
	if err != nil {
		return nil, nil, failure(api, s.ping(scheme), errContext(ctx, err))
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
		return &transport.Challenge{Insecure: scheme == "http"}, resp, nil
	case http.StatusUnauthorized:
		if c, err = challenge(ctx, s.repo.Registry, resp); err == nil && c.Scheme != "" {
			discard(resp)
			return c, nil, nil
		}
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		if retryAfter(resp.Header) > 0 { // it is not to be asked anything else
			defer discard(resp)
			return nil, nil, s.refusal(api, resp, true)
		}
	}
	c, err = s.askAPI(ctx, scheme)
	if err == nil && c.Scheme == "" && c.Insecure == (scheme == "http") {
		return c, resp, nil // credentials would change nothing
	}
	discard(resp)
	return c, nil, err
}

const api = "the API" // what is asked for, in errors

// ping is where the server's API begins.
func (s *session) ping(scheme string) *url.URL {
	return &url.URL{Scheme: scheme, Host: s.root.Host, Path: s.root.Path + "/"}
}

// url is where the server has something of the repository. RoundTrip replaces the scheme, where it isn't known yet.
func (s *session) url(kind, id string) *url.URL {
	u := &url.URL{Scheme: cmp.Or(s.root.Scheme, "https"), Host: s.root.Host, Path: s.root.Path + "/" + s.repo.RepositoryStr() + "/" + kind + "/" + id}
	if c := s.load().challenge; c != nil {
		u.Scheme = scheme(c.Insecure)
	}
	return u
}

// askAPI asks for the root of the server's API (distribution specification, "Determining Support").
func (s *session) askAPI(ctx context.Context, scheme string) (*transport.Challenge, error) {
	u := s.ping(scheme)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, failure(api, u, err)
	}
	client := &http.Client{Transport: s.base, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if req.URL.Hostname() != u.Hostname() {
			return http.ErrUseLastResponse
		}
		return limitRedirects(req, via)
	}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, failure(api, u, errContext(ctx, err))
	}
	defer discard(resp)
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusUnauthorized {
		return nil, s.refusal(api, resp, true)
	}
	c, err := challenge(ctx, s.repo.Registry, resp)
	if err != nil {
		return nil, failure(api, u, err)
	}
	return c, nil
}

// answered is a http.RoundTripper that has the answer already.
type answered struct{ resp *http.Response }

func (a answered) RoundTrip(*http.Request) (*http.Response, error) {
	resp := *a.resp
	resp.Body = http.NoBody
	return &resp, nil
}

// challenge reads what an answer of 200 or 401 says about authentication.
func challenge(ctx context.Context, reg name.Registry, resp *http.Response) (*transport.Challenge, error) {
	return transport.Ping(ctx, reg, answered{resp})
}

// authenticate gets what st's challenge asks for.
func (s *session) authenticate(ctx context.Context, st state) (state, error) {
	st.token = ""
	auth := s.credentials()
	const what = "a token"
	c := st.challenge
	switch {
	case c.Scheme == "" || isBasic(c):
		return st, nil
	case !strings.EqualFold(c.Scheme, "bearer"):
		return state{}, &Error{What: what, URL: scheme(c.Insecure) + "://" + s.root.Host, kind: ErrUnauthorized,
			err: fmt.Errorf("authentication by %q is not supported", printable(c.Scheme))}
	case auth.RegistryToken != "":
		st.token = auth.RegistryToken
		return st, nil
	}
	if st.refresh != "" {
		if next, err := s.exchange(ctx, st, authn.AuthConfig{IdentityToken: st.refresh}); err == nil || ctx.Err() != nil {
			return next, err
		}
		st.refresh = ""
	}
	next, err := s.exchange(ctx, st, auth)
	if err != nil {
		u, _ := url.Parse(c.Parameters["realm"]) // checked by the exchange
		return state{}, s.handshakeError(what, u, errContext(ctx, err))
	}
	return next, nil
}

// exchange gets a token for auth (docker's token authentication specification, or its OAuth2 form).
func (s *session) exchange(ctx context.Context, st state, auth authn.AuthConfig) (state, error) {
	scopes := []string{s.repo.Scope(transport.PullScope)}
	if asked := st.challenge.Parameters["scope"]; s.root.Path != "/v2" && asked != "" { // the repository has another name there
		scopes = strings.Fields(asked)
	}
	t, err := transport.Exchange(ctx, s.repo.Registry, authn.FromConfig(auth), s.base, scopes, st.challenge)
	if err != nil {
		return state{}, err
	}
	st.token = t.AccessToken
	if st.token == "" {
		st.token = t.Token
	}
	if t.RefreshToken != "" {
		st.refresh = t.RefreshToken
	}
	return st, nil
}

// home says whether u is at the registry itself, whatever its scheme: a credential may go there.
func (s *session) home(u *url.URL) bool { return sameHost(u, s.root.Host) }

// sameHost says whether u is at a host, which has a port or not: without one, it means that of u's scheme.
func sameHost(u *url.URL, at string) bool {
	host, port, _ := cutPort(u.Host)
	want, wantPort, _ := cutPort(at)
	if port == "" && wantPort != "" || port != "" && wantPort == "" {
		port, wantPort = orDefault(port, u.Scheme), orDefault(wantPort, u.Scheme)
	}
	return strings.EqualFold(host, want) && port == wantPort
}

func orDefault(port, scheme string) string {
	switch {
	case port != "":
		return port
	case scheme == "http":
		return "80"
	}
	return "443"
}

// discard reads the rest of a short body, so that its connection can be used again, and closes it.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, maxErrorBody)
	_ = resp.Body.Close()
}

// isTLS says that err is about certificates or the TLS protocol: trying again won't help.
func isTLS(err error) bool {
	var verify *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	var unknown x509.UnknownAuthorityError
	var op *net.OpError
	return errors.As(err, &verify) || errors.As(err, &header) || errors.As(err, &unknown) || errors.As(err, &op) && op.Op == remoteAlert
}

// remoteAlert is the operation of a net.OpError that an alert of the server's makes (crypto/tls).
const remoteAlert = "remote error"
