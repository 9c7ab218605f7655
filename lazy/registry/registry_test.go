package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/blob/blobtest"
	"github.com/pexfs/pex/lazy/ref"
)

const ociManifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}`

func TestResolve(t *testing.T) {
	const index = `{"schemaVersion":2,"manifests":[]}`
	for _, tt := range []struct {
		name, contentType, body, header string
		want                            types.MediaType
		wantErr                         error
		errText                         string
	}{
		{name: "manifest", contentType: string(types.OCIManifestSchema1), body: ociManifest, want: types.OCIManifestSchema1},
		{name: "with parameters", contentType: string(types.OCIManifestSchema1) + "; charset=utf-8", body: ociManifest, want: types.OCIManifestSchema1},
		{name: "index", contentType: string(types.OCIImageIndex), body: index, want: types.OCIImageIndex},
		{name: "docker list", contentType: string(types.DockerManifestList), body: index, want: types.DockerManifestList},
		{name: "docker manifest", contentType: string(types.DockerManifestSchema2), body: `{"config":{}}`, want: types.DockerManifestSchema2},
		{name: "type from the body", contentType: "application/json", body: ociManifest, want: types.OCIManifestSchema1},
		{name: "type from the shape", contentType: "text/plain", body: index, want: types.OCIImageIndex},
		{name: "schema 1", contentType: "application/vnd.docker.distribution.manifest.v1+prettyjws", body: `{"schemaVersion":1}`, wantErr: ref.ErrUnsupported, errText: "schema 1"},
		{name: "type contradicts", contentType: string(types.OCIImageIndex), body: ociManifest, wantErr: ref.ErrUnsupported},
		{name: "two things at once", contentType: string(types.OCIImageIndex), body: `{"manifests":[],"layers":[]}`, wantErr: ref.ErrUnsupported},
		{name: "a page", contentType: "text/html", body: "<html>", wantErr: ref.ErrUnsupported, errText: "not JSON"},
		{name: "something else", contentType: "application/json", body: "{}", wantErr: ref.ErrUnsupported},
		{name: "too long", contentType: string(types.OCIImageIndex), body: strings.Repeat(" ", maxManifest+1), errText: "more than"},
		{name: "other digest", contentType: string(types.OCIManifestSchema1), body: ociManifest, header: "sha256:" + strings.Repeat("0", 64), wantErr: blob.ErrDigestMismatch},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			f.mediaType = types.MediaType(tt.contentType)
			want := f.addManifest("v1", []byte(tt.body))
			want.MediaType = tt.want
			if tt.header != "" {
				f.before = func(w http.ResponseWriter, _ *http.Request) bool {
					w.Header().Set("Docker-Content-Digest", tt.header)
					return false
				}
			}
			r := open(t, f.host(), ":v1", authn.AuthConfig{})
			got, err := r.Resolve(t.Context())
			if tt.wantErr != nil || tt.errText != "" {
				if tt.wantErr != nil && !errors.Is(err, tt.wantErr) || err == nil || !strings.Contains(err.Error(), tt.errText) {
					t.Errorf("error %v, want %v %q", err, tt.wantErr, tt.errText)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]string{"GET /v2/app/manifests/v1"}, f.log()); diff != "" {
				t.Error(diff)
			}
			body, err := r.Manifest(t.Context(), got)
			if err != nil || string(body) != tt.body {
				t.Errorf("Manifest = %q, %v", body, err)
			}
			if l := f.log(); len(l) > 0 {
				t.Errorf("the manifest was asked for again: %q", l)
			}
		})
	}
}

func TestResolveByDigest(t *testing.T) {
	f := newFake(t)
	d := f.addManifest("v1", []byte(ociManifest))
	r := open(t, f.host(), "@"+d.Digest.String(), authn.AuthConfig{})
	got, err := r.Resolve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d, got); diff != "" {
		t.Error(diff)
	}
	f.manifests[d.Digest.String()] = []byte(strings.Replace(ociManifest, "[]", "[ ]", 1))
	if _, err := open(t, f.host(), "@"+d.Digest.String(), authn.AuthConfig{}).Resolve(t.Context()); !errors.Is(err, blob.ErrDigestMismatch) {
		t.Errorf("error %v", err)
	}
}

func TestManifest(t *testing.T) {
	f := newFake(t)
	m := f.addManifest("v1", []byte(ociManifest))
	config := f.addBlob([]byte(`{"architecture":"amd64"}`))
	config.MediaType = types.OCIConfigJSON
	lies := f.addBlob([]byte("lies"))
	f.blobs[lies.Digest.String()] = []byte("laws")
	inline := v1.Descriptor{MediaType: types.OCIConfigJSON, Size: 2, Data: []byte("{}"),
		Digest: v1.Hash{Algorithm: "sha256", Hex: "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}}
	sized := func(d v1.Descriptor, size int64) v1.Descriptor { d.Size = size; return d }
	r := open(t, f.host(), ":v1", authn.AuthConfig{})
	for _, tt := range []struct {
		name    string
		d       v1.Descriptor
		want    string
		wantErr error
		errText string
	}{
		{"manifest", m, ociManifest, nil, ""},
		{"config", config, `{"architecture":"amd64"}`, nil, ""},
		{"inline", inline, "{}", nil, ""},
		{"other content", lies, "", blob.ErrDigestMismatch, "want sha256:"},
		{"longer", sized(config, 10), "", nil, "more than 10"},
		{"shorter", sized(config, 100), "", blob.ErrDigestMismatch, "want 100"},
		{"huge", sized(config, 1<<40), "", nil, "more than"},
		{"negative", sized(config, -1), "", nil, "its size is -1"},
		{"no digest", v1.Descriptor{Size: 1}, "", nil, "cannot parse hash"},
		{"path as digest", v1.Descriptor{Size: 1, Digest: v1.Hash{Algorithm: "sha256", Hex: "../../../etc"}}, "", nil, "hash"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := r.Manifest(t.Context(), tt.d)
			if tt.wantErr != nil || tt.errText != "" {
				if tt.wantErr != nil && !errors.Is(err, tt.wantErr) || err == nil || !strings.Contains(err.Error(), tt.errText) {
					t.Errorf("error %v, want %v %q", err, tt.wantErr, tt.errText)
				}
			} else if err != nil || string(got) != tt.want {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestResolveErrors(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().String()
	closed.Close()
	f := newFake(t)
	page := httptest.NewServer(http.NotFoundHandler())
	defer page.Close()
	secret := newFake(t)
	secret.user, secret.password = "me", "secret"
	broken := newFake(t)
	broken.user, broken.tokenStatus = "me", http.StatusInternalServerError
	foreign := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", "Negotiate")
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer foreign.Close()
	inward := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://169.254.169.254/token"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer inward.Close()
	for _, tt := range []struct {
		name, host string
		auth       authn.AuthConfig
		want       error
		text       string
	}{
		{"nobody listens", nobody, authn.AuthConfig{}, ErrUnreachable, nobody},
		{"no such image", f.host(), authn.AuthConfig{}, ErrNotFound, "MANIFEST_UNKNOWN: no such thing"},
		{"no registry", strings.TrimPrefix(page.URL, "http://"), authn.AuthConfig{}, ErrNotFound, "/v2/"},
		{"anonymous", secret.host(), authn.AuthConfig{}, ErrUnauthorized, "a token"},
		{"wrong password", secret.host(), authn.AuthConfig{Username: "me", Password: "wrong"}, ErrUnauthorized, "a token"},
		{"stale token", secret.host(), authn.AuthConfig{RegistryToken: "old"}, ErrUnauthorized, "UNAUTHORIZED: who are you"},
		{"token server broken", broken.host(), authn.AuthConfig{}, nil, "giving up after 6 attempts: getting a token from " + broken.URL + "/token: 500"},
		{"unknown scheme", strings.TrimPrefix(foreign.URL, "http://"), authn.AuthConfig{}, ErrUnauthorized, `"negotiate"`},
		{"token server inside", strings.TrimPrefix(inward.URL, "http://"), authn.AuthConfig{}, nil, "link-local"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := open(t, tt.host, ":v1", tt.auth).Resolve(t.Context())
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want %v and %q", err, tt.want, tt.text)
			}
		})
	}
}

func TestNoSuchHost(t *testing.T) {
	transport := NewTransport()
	transport.Proxy = nil
	calls := 0
	transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
		calls++
		return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "nowhere.invalid", IsNotFound: true}}
	}
	r, err := ref.Parse("nowhere.invalid/app")
	if err != nil {
		t.Fatal(err)
	}
	repo, err := Open(r, Options{Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = repo.Resolve(t.Context()); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "nowhere.invalid") {
		t.Errorf("error %v", err)
	}
	if calls != 1 {
		t.Errorf("%d attempts", calls)
	}
}

func TestTokens(t *testing.T) {
	f := newFake(t)
	f.user, f.password = "me", "secret"
	f.addManifest("v1", []byte(ociManifest))
	content := blobtest.Random(100_000)
	d := f.addBlob(content)
	r := open(t, f.host(), ":v1", authn.AuthConfig{Username: "me", Password: "secret"})
	if _, err := r.Resolve(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"GET /v2/app/manifests/v1", "GET /token", "GET /v2/app/manifests/v1"}
	if diff := cmp.Diff(want, f.log()); diff != "" {
		t.Error(diff)
	}
	// An expired token is replaced once, however many notice.
	f.expire()
	src := r.Blob(d)
	var wg sync.WaitGroup
	for i := range int64(20) {
		wg.Go(func() {
			b, err := read(t, src, i*1000, 1000)
			if err != nil || !bytes.Equal(b, content[i*1000:(i+1)*1000]) {
				t.Errorf("reading at %d: %v", i*1000, err)
			}
		})
	}
	wg.Wait()
	if f.tokens != 2 {
		t.Errorf("%d tokens were asked for, want 2", f.tokens)
	}
}

// TestRefreshTokens has a token server that gives a new refresh token with every token, as of OAuth2.
func TestRefreshTokens(t *testing.T) {
	f := newFake(t)
	f.user = "<token>"
	f.addManifest("v1", []byte(ociManifest))
	var used []string
	refuse := ""
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/token" {
			return false
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		given := r.PostFormValue("refresh_token")
		used = append(used, given)
		if given == refuse {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		f.tokens++
		f.valid = fmt.Sprintf("token-%d", f.tokens)
		fmt.Fprintf(w, `{"access_token":%q,"refresh_token":"refresh-%d"}`, f.valid, f.tokens)
		return true
	}
	r := open(t, f.host(), ":v1", authn.AuthConfig{IdentityToken: "mine"})
	for i := range 3 {
		if _, err := r.Resolve(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.expire()
		if i == 1 {
			refuse = "refresh-2"
		}
	}
	if diff := cmp.Diff([]string{"mine", "refresh-1", "refresh-2", "mine"}, used); diff != "" {
		t.Error(diff)
	}
}

// TestHandshake has a registry answer the first request in ways that tell nothing of how it authenticates: then it is asked.
func TestHandshake(t *testing.T) {
	for _, tt := range []struct {
		name      string
		secret    bool // the registry wants a token
		first     int  // status of the first answer, or 0
		root      int  // status of the root's, or 0
		want      []string
		wantError error
	}{
		{"answered", false, 0, 0, []string{"manifest"}, nil},
		{"asked for a token", true, 0, 0, []string{"manifest", "token", "manifest"}, nil},
		{"not found", false, 404, 0, []string{"manifest", "root"}, ErrNotFound},
		{"not found without a token", true, 404, 0, []string{"manifest", "root", "token", "manifest"}, nil},
		{"forbidden without a token", true, 403, 0, []string{"manifest", "root", "token", "manifest"}, nil},
		{"unauthorized, with no way to be", false, 401, 0, []string{"manifest", "root"}, ErrUnauthorized},
		{"overloaded", true, 503, 503, []string{"manifest", "root", "manifest", "token", "manifest"}, nil},
		{"no registry", false, 404, 404, []string{"manifest", "root"}, ErrNotFound},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			f.addManifest("v1", []byte(ociManifest))
			if tt.secret {
				f.user, f.password = "me", "secret"
			}
			short := map[string]string{"/v2/": "root", "/token": "token", "/v2/app/manifests/v1": "manifest"}
			var mu sync.Mutex
			seen := make(map[string]bool)
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				what := short[r.URL.Path]
				status := map[string]int{"root": tt.root, "manifest": tt.first}[what]
				mu.Lock()
				defer mu.Unlock()
				if seen[what] || status == 0 {
					return false
				}
				seen[what] = true
				w.WriteHeader(status)
				return true
			}
			_, err := open(t, f.host(), ":v1", authn.AuthConfig{Username: "me", Password: "secret"}).Resolve(t.Context())
			if !errors.Is(err, tt.wantError) {
				t.Errorf("error %v, want %v", err, tt.wantError)
			}
			var got []string
			for _, l := range f.log() {
				got = append(got, short[strings.TrimPrefix(l, "GET ")])
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error("-want +got:", diff)
			}
		})
	}
}

// TestHandshakeOnce has many ask at once, and the first give up while it has the turn: the others wait for one of them.
func TestHandshakeOnce(t *testing.T) {
	f := newFake(t)
	f.user, f.password = "me", "secret"
	d := f.addBlob(blobtest.Random(1000))
	r := open(t, f.host(), ":v1", authn.AuthConfig{Username: "me", Password: "secret"})
	release := make(chan struct{})
	f.before = func(http.ResponseWriter, *http.Request) bool {
		<-release
		return false
	}
	ctx, cancel := context.WithCancel(t.Context())
	interrupted := make(chan error)
	go func() {
		_, err := r.Blob(d).Fetch(ctx, 0, 1)
		interrupted <- err
	}()
	for len(f.log()) == 0 {
		time.Sleep(time.Millisecond)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := read(t, r.Blob(d), 0, 1); err != nil {
				t.Error(err)
			}
		})
	}
	cancel()
	if err := <-interrupted; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	close(release)
	wg.Wait()
	if n := len(f.log()); n != 1+1+8 { // one that is refused, a token, and all of them
		t.Errorf("%d requests, want 10", n)
	}
	if f.tokens != 1 {
		t.Errorf("%d tokens", f.tokens)
	}
}

func TestBasicAuth(t *testing.T) {
	f := newFake(t)
	f.addManifest("v1", []byte(ociManifest))
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, ok := r.BasicAuth(); ok && u == "me" && p == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	for _, tt := range []struct {
		name string
		auth authn.AuthConfig
		want error
	}{
		{"password", authn.AuthConfig{Username: "me", Password: "secret"}, nil},
		{"encoded", authn.AuthConfig{Auth: "bWU6c2VjcmV0"}, nil},
		{"wrong", authn.AuthConfig{Username: "me", Password: "wrong"}, ErrUnauthorized},
		{"none", authn.AuthConfig{}, ErrUnauthorized},
	} {
		if _, err := open(t, f.host(), ":v1", tt.auth).Resolve(t.Context()); !errors.Is(err, tt.want) {
			t.Errorf("%s: error %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestHTTPS(t *testing.T) {
	f := newFake(t)
	f.addManifest("v1", []byte(ociManifest))
	d := f.addBlob([]byte("abc"))
	secure := httptest.NewUnstartedServer(f)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshakes that are meant to fail
	secure.StartTLS()
	defer secure.Close()
	host := strings.TrimPrefix(secure.URL, "https://")
	at := func(host string, o Options) *Repo {
		t.Helper()
		r, err := ref.Parse(host + "/app:v1")
		if err != nil {
			t.Fatal(err)
		}
		o.Retry = quick
		if o.Transport == nil {
			o.Transport = secure.Client().Transport
		}
		repo, err := Open(r, o)
		if err != nil {
			t.Fatal(err)
		}
		return repo
	}
	t.Run("on loopback", func(t *testing.T) {
		if _, err := at(host, Options{}).Resolve(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("unknown authority", func(t *testing.T) {
		_, err := at(host, Options{Transport: NewTransport()}).Resolve(t.Context())
		if err == nil || blob.Temporary(err) {
			t.Errorf("error %v", err)
		}
	})
	// elsewhere dials the plain server whatever host it is asked for.
	elsewhere := NewTransport()
	defer elsewhere.CloseIdleConnections()
	elsewhere.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, f.host())
	}
	t.Run("plain elsewhere", func(t *testing.T) {
		for _, host := range []string{"10.0.0.1:5000", "registry.example:5000"} {
			f.log()
			if _, err := at(host, Options{Transport: elsewhere}).Resolve(t.Context()); err == nil {
				t.Errorf("%s: no error", host)
			}
			if l := f.log(); len(l) != 0 {
				t.Errorf("%s: plain requests were sent: %q", host, l)
			}
		}
	})
	t.Run("plain elsewhere with permission", func(t *testing.T) {
		for _, host := range []string{"10.0.0.1:5000", "registry.example", "registry.example:443"} {
			if _, err := at(host, Options{Transport: elsewhere, Insecure: true}).Resolve(t.Context()); err != nil {
				t.Errorf("%s: %v", host, err)
			}
		}
	})
	t.Run("redirected from HTTPS to plain", func(t *testing.T) {
		f.before = func(w http.ResponseWriter, r *http.Request) bool {
			if r.TLS == nil || !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			http.Redirect(w, r, f.URL+r.URL.Path, http.StatusFound)
			return true
		}
		defer func() { f.before = nil }()
		tlsOnly := secure.Client().Transport.(*http.Transport).Clone()
		defer tlsOnly.CloseIdleConnections()
		tlsOnly.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == "example.com:443" {
				addr = host
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
		_, err := at("example.com", Options{Transport: tlsOnly}).Blob(d).Fetch(t.Context(), 0, 1)
		if !errors.Is(err, errPlainHTTP) {
			t.Errorf("error %v", err)
		}
	})
}

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "a.localhost:1": true, "127.0.0.1": true, "127.9.9.9:80": true,
		"[::1]": true, "[::1]:5000": true, "10.0.0.1:5000": false, "127.0.0.1.example.com": false,
		"localhost.example.com": false, "[::2]:5000": false, "example.com": false, "": false,
		"[::ffff:127.0.0.1]:80": true,
	} {
		if got := loopback(host); got != want {
			t.Errorf("loopback(%q) = %v", host, got)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	for _, tt := range []struct {
		in   string
		ok   func(time.Duration) bool
		want string
	}{
		{"", func(d time.Duration) bool { return d == 0 }, "0"},
		{"7", func(d time.Duration) bool { return d == 7*time.Second }, "7s"},
		{"-7", func(d time.Duration) bool { return d == 0 }, "0"},
		{"99999999999999", func(d time.Duration) bool { return d == 0 }, "0"},
		{time.Now().Add(time.Hour).UTC().Format(http.TimeFormat), func(d time.Duration) bool { return d > 30*time.Minute }, "an hour"},
		{time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat), func(d time.Duration) bool { return d == 0 }, "0"},
	} {
		if d := retryAfter(http.Header{"Retry-After": {tt.in}}); !tt.ok(d) {
			t.Errorf("%q: %v, want %s", tt.in, d, tt.want)
		}
	}
}

func TestCredentials(t *testing.T) {
	const docker = `{"auths":{"example.com":{"auth":"ZG9ja2VyOnB3"},"https://index.docker.io/v1/":{"auth":"aHViOnB3"}}}`
	const podman = `{"auths":{"example.com":{"auth":"cG9kbWFuOnB3"},"docker.io":{"auth":"cG9kaHViOnB3"},
		"quay.io/team":{"auth":"dGVhbTpwdw=="},"quay.io/team/app":{"auth":"YXBwOnB3"},"token.example":{"auth":"PHRva2VuPjo=","identitytoken":"t"}}}`
	for _, tt := range []struct {
		name, docker, runtime, config, file string
		ref                                 string
		want                                authn.AuthConfig
		errText                             string
	}{
		{name: "nothing", ref: "example.com/app"},
		{name: "docker", docker: docker, ref: "example.com/app", want: authn.AuthConfig{Username: "docker", Password: "pw"}},
		{name: "docker hub", docker: docker, ref: "python", want: authn.AuthConfig{Username: "hub", Password: "pw"}},
		{name: "docker first", docker: docker, runtime: podman, ref: "example.com/app", want: authn.AuthConfig{Username: "docker", Password: "pw"}},
		{name: "podman beside docker", docker: docker, runtime: podman, ref: "quay.io/team/x", want: authn.AuthConfig{Username: "team", Password: "pw"}},
		{name: "podman", runtime: podman, ref: "example.com/app", want: authn.AuthConfig{Username: "podman", Password: "pw"}},
		{name: "podman's most specific", runtime: podman, ref: "quay.io/team/app", want: authn.AuthConfig{Username: "app", Password: "pw"}},
		{name: "podman's hub", runtime: podman, ref: "python", want: authn.AuthConfig{Username: "podhub", Password: "pw"}},
		{name: "podman's config folder", config: podman, ref: "example.com/app", want: authn.AuthConfig{Username: "podman", Password: "pw"}},
		{name: "file of the environment first", docker: docker, file: podman, ref: "example.com/app", want: authn.AuthConfig{Username: "podman", Password: "pw"}},
		{name: "docker beside that file", docker: docker, file: `{}`, ref: "example.com/app", want: authn.AuthConfig{Username: "docker", Password: "pw"}},
		{name: "podman's other path", runtime: podman, ref: "quay.io/other/app"},
		{name: "docker's helper", docker: `{"credHelpers":{"example.com":"test"}}`, ref: "example.com/app", want: authn.AuthConfig{Username: "helped", Password: "pw"}},
		{name: "podman's helper", runtime: `{"credHelpers":{"example.com":"test"}}`, ref: "example.com/app", want: authn.AuthConfig{Username: "helped", Password: "pw"}},
		{name: "unknown host", docker: docker, runtime: podman, ref: "other.example/app"},
		{name: "broken file", runtime: "{", ref: "example.com/app", errText: "finding credentials for example.com"},
		{name: "layout", docker: docker, ref: "oci:dir"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("HOME", dir)
			t.Setenv("DOCKER_CONFIG", filepath.Join(dir, ".docker"))
			t.Setenv("XDG_RUNTIME_DIR", filepath.Join(dir, "run"))
			t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "config"))
			t.Setenv("REGISTRY_AUTH_FILE", "")
			put := func(name, content string) {
				name = filepath.Join(dir, name)
				if content == "" {
					return
				}
				if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, []byte(content), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			put("docker-credential-test", "#!/bin/sh\necho '{\"Username\":\"helped\",\"Secret\":\"pw\"}'\n")
			if err := os.Chmod(filepath.Join(dir, "docker-credential-test"), 0o700); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
			put(".docker/config.json", tt.docker)
			put("run/containers/auth.json", tt.runtime)
			put("config/containers/auth.json", tt.config)
			if tt.file != "" {
				put("auth.json", tt.file)
				t.Setenv("REGISTRY_AUTH_FILE", filepath.Join(dir, "auth.json"))
			}
			r, err := ref.Parse(tt.ref)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Credentials(t.Context(), r)
			if tt.errText != "" {
				if err == nil || !strings.Contains(err.Error(), tt.errText) {
					t.Errorf("error %v, want %q", err, tt.errText)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got.Auth = "" // says the same again
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			// It goes to another process as JSON.
			j, err := json.Marshal(got)
			if err != nil {
				t.Fatal(err)
			}
			var back authn.AuthConfig
			if err := json.Unmarshal(j, &back); err != nil {
				t.Fatal(err)
			}
			if back.Username != got.Username || back.Password != got.Password || back.IdentityToken != got.IdentityToken {
				t.Errorf("%s came back as %+v", j, back)
			}
		})
	}
}

func TestOpenErrors(t *testing.T) {
	r, err := ref.Parse("oci:dir")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(r, Options{}); err == nil {
		t.Error("a layout was opened as a registry")
	}
}

func ExampleOpen() {
	r, err := ref.Parse("registry.example/app:v1")
	if err != nil {
		fmt.Println(err)
		return
	}
	auth, err := Credentials(context.Background(), r)
	if err != nil {
		fmt.Println(err)
		return
	}
	repo, err := Open(r, Options{Auth: auth, Transport: NewTransport()})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(repo.Resolve(context.Background()))
}
