package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/blob/blobtest"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/registry/hosts"
)

// at is a server as a host that may do all.
func at(rawURL string) hosts.Host {
	u, err := url.Parse(rawURL)
	if err != nil {
		panic(err)
	}
	u.Path += "/v2"
	return hosts.Host{Root: u, Pull: true, Resolve: true, Key: "plain"}
}

func openAt(t *testing.T, o Options, name string) *Repo {
	t.Helper()
	r, err := ref.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	transport := NewTransport()
	t.Cleanup(transport.CloseIdleConnections)
	o.Transport, o.Retry = transport, quick
	repo, err := Open(r, o)
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// TestMirrors reads an image through a mirror, whatever is wrong with it.
func TestMirrors(t *testing.T) {
	content := blobtest.Random(200_000)
	status := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(code)
			return true
		}
	}
	for _, tt := range []struct {
		name    string
		empty   bool // the mirror has nothing
		pull    bool // only
		before  func(w http.ResponseWriter, r *http.Request) bool
		mirror  int  // requests to it, at most; of 1 for the tag, 1 for the manifest, 10 for the blob
		through bool // the server itself isn't asked at all
	}{
		{name: "it has all", mirror: 12, through: true},
		{name: "it has nothing", empty: true, mirror: 4},
		{name: "it is not to resolve", pull: true, mirror: 12},
		{name: "it is broken", before: status(500), mirror: 2},
		{name: "it refuses", before: status(403), mirror: 2},
		{name: "it cuts what it says", before: func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Length", "1000")
			w.Write([]byte("ab"))
			panic(http.ErrAbortHandler)
		}, mirror: 2},
		{name: "it says something else", before: func(w http.ResponseWriter, r *http.Request) bool {
			w.Write([]byte(`{"schemaVersion":2}`))
			return true
		}, mirror: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, mirror := newFake(t), newFake(t)
			d := server.addManifest("v1", []byte(ociManifest))
			b := server.addBlob(content)
			if !tt.empty {
				mirror.addManifest("v1", []byte(ociManifest))
				mirror.addBlob(content)
			}
			var asked atomic.Int64
			mirror.before = func(w http.ResponseWriter, r *http.Request) bool {
				asked.Add(1)
				if ns := r.URL.Query().Get("ns"); ns != server.host() && r.URL.Path != "/v2/" {
					t.Errorf("%s asks for what of %q", r.URL, ns)
				}
				return tt.before != nil && tt.before(w, r)
			}
			m := at(mirror.URL)
			m.Resolve = !tt.pull
			repo := openAt(t, Options{Hosts: []hosts.Host{m, at(server.URL)}}, server.host()+"/app:v1")
			got, err := repo.Resolve(t.Context())
			if err != nil || got.Digest != d.Digest {
				t.Fatalf("resolved to %v, %v", got, err)
			}
			repo.mu.Lock()
			repo.root = root{} // it would answer for the registry
			repo.mu.Unlock()
			if body, err := repo.Manifest(t.Context(), d); err != nil || string(body) != ociManifest {
				t.Errorf("the manifest is %q, %v", body, err)
			}
			src := blob.Retry(repo.Blob(b), quick)
			for i := range int64(10) {
				p, err := read(t, src, i*10_000, 10_000)
				if err != nil || !bytes.Equal(p, content[i*10_000:][:10_000]) {
					t.Errorf("%d bytes, %v", len(p), err)
				}
			}
			if n := int(asked.Load()); n > tt.mirror {
				t.Errorf("the mirror was asked %d times, more than %d", n, tt.mirror)
			}
			if l := server.log(); tt.through && len(l) > 0 {
				t.Errorf("the server was asked for %q", l)
			}
		})
	}
}

// TestMirrorDistrusted leaves a mirror out that gave wrong bytes.
func TestMirrorDistrusted(t *testing.T) {
	content := blobtest.Random(1000)
	server, mirror := newFake(t), newFake(t)
	d := server.addBlob(content)
	mirror.blobs[d.Digest.String()] = blobtest.Random(2000)[1000:]
	repo := openAt(t, Options{Hosts: []hosts.Host{at(mirror.URL), at(server.URL)}}, server.host()+"/app:v1")
	if b, err := read(t, repo.Blob(d), 0, 10); err != nil || bytes.Equal(b, content[:10]) {
		t.Fatalf("%q, %v", b, err)
	}
	repo.Distrust(d.Digest)
	if b, err := read(t, repo.Blob(d), 0, 10); err != nil || !bytes.Equal(b, content[:10]) {
		t.Errorf("%q, %v", b, err)
	}
	repo.Distrust(v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}) // unknown
}

// TestMirrorDigest resolves a digest by any server that has contents: what it gives is judged by that digest alone.
func TestMirrorDigest(t *testing.T) {
	for _, tt := range []struct {
		name           string
		pull           bool   // is all that the mirror is trusted with
		text           string // of the mirror's manifest
		gone           bool   // the server
		mirror, server int    // requests for manifests, of two
	}{
		{name: "trusted with contents only", pull: true, text: ociManifest, gone: true, mirror: 2},
		{name: "trusted with tags", text: ociManifest, gone: true, mirror: 2},
		{name: "another manifest", pull: true, text: ociManifest + " ", mirror: 1, server: 2},
		{name: "none", text: "{", mirror: 1, server: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, mirror := newFake(t), newFake(t)
			d := server.addManifest("v1", []byte(ociManifest))
			mirror.manifests[d.Digest.String()] = []byte(tt.text)
			m := at(mirror.URL)
			m.Resolve = !tt.pull
			repo := openAt(t, Options{Hosts: []hosts.Host{m, at(server.URL)}}, server.host()+"/app@"+d.Digest.String())
			if tt.gone {
				server.Close()
			}
			for range 2 {
				if got, err := repo.Resolve(t.Context()); err != nil || got.Digest != d.Digest || got.Size != d.Size {
					t.Errorf("resolved to %v, %v", got, err)
				}
			}
			manifests := func(f *fake) (n int) {
				for _, r := range f.log() {
					if strings.Contains(r, "/manifests/") {
						n++
					}
				}
				return n
			}
			if m, s := manifests(mirror), manifests(server); m != tt.mirror || s != tt.server {
				t.Errorf("the mirror was asked %d times and the server %d times, want %d and %d", m, s, tt.mirror, tt.server)
			}
		})
	}
}

// TestMirrorGone holds that the error is the server's, and tells of the mirror's, too.
func TestMirrorGone(t *testing.T) {
	server, mirror := newFake(t), newFake(t)
	mirror.Close()
	repo := openAt(t, Options{Hosts: []hosts.Host{at(mirror.URL), at(server.URL)}}, server.host()+"/app:v1")
	_, err := repo.Resolve(t.Context())
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), mirror.host()) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("error %v", err)
	}
	none := at(server.URL)
	none.Pull, none.Resolve = false, false
	if _, err := openAt(t, Options{Hosts: []hosts.Host{none}}, server.host()+"/app:v1").Resolve(t.Context()); err == nil || !strings.Contains(err.Error(), "no server is configured") {
		t.Errorf("error %v", err)
	}
}

// TestMirrorCredentials has mirror and server want tokens, of different users: each is shown its own.
func TestMirrorCredentials(t *testing.T) {
	content := blobtest.Random(1000)
	server, mirror := newFake(t), newFake(t)
	server.user, server.password = "me", "secret"
	mirror.user, mirror.password = "robot", "hush"
	d := server.addBlob(content)
	var shown atomic.Int64
	watch := func(f *fake, own, other string) {
		f.before = func(w http.ResponseWriter, r *http.Request) bool {
			if u, p, ok := r.BasicAuth(); ok {
				shown.Add(1)
				if p != own || u == "" {
					t.Errorf("%s was shown %s:%s", f.host(), u, p)
				}
			}
			return false
		}
	}
	watch(server, "secret", "hush")
	watch(mirror, "hush", "secret")
	repo := openAt(t, Options{
		Hosts: []hosts.Host{at(mirror.URL), at(server.URL)}, Auth: authn.AuthConfig{Username: "me", Password: "secret"},
		HostAuth: map[string]authn.AuthConfig{mirror.host(): {Username: "robot", Password: "hush"}},
	}, server.host()+"/app:v1")
	if b, err := read(t, repo.Blob(d), 0, 10); err != nil || !bytes.Equal(b, content[:10]) {
		t.Errorf("%q, %v", b, err)
	}
	if n := shown.Load(); n != 2 {
		t.Errorf("%d saw credentials, not both", n)
	}
}

// TestTLS speaks with a server whose authority is private and that wants a certificate, which sends on to another host.
func TestTLS(t *testing.T) {
	content := blobtest.Random(1000)
	f := newFake(t) // what the others hand out
	f.addManifest("v1", []byte(ociManifest))
	d := f.addBlob(content)
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) > 0 || r.Header.Get("X-Own") != "" || r.TLS.NegotiatedProtocol == "h2" {
			t.Errorf("the other host was shown %d certificates, header %q, %s", len(r.TLS.PeerCertificates), r.Header.Get("X-Own"), r.TLS.NegotiatedProtocol)
		}
		f.ServeHTTP(w, r)
	}))
	defer other.Close()
	other.TLS.ClientAuth = tls.RequestClientCert
	for _, tt := range []struct {
		name   string
		only2  bool // the server speaks nothing but HTTP/2
		client bool // certificate
		roots  bool
		skip   bool
		err    string
	}{
		{name: "all right", client: true, roots: true},
		{name: "HTTP/2 only", client: true, roots: true, only2: true},
		{name: "unknown authority", client: true, err: "unknown authority"},
		{name: "not verified", client: true, skip: true},
		{name: "no certificate", roots: true, err: "tls: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("X-Own") != "mine" || tt.only2 && r.ProtoMajor != 2 {
					t.Errorf("%s %s has header %q", r.Proto, r.URL, r.Header.Get("X-Own"))
				}
				if strings.Contains(r.URL.Path, "/blobs/") && !tt.skip {
					http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
					return
				}
				f.ServeHTTP(w, r)
			}))
			s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
			if tt.only2 {
				s.EnableHTTP2 = true
				s.TLS.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) { // the server itself would speak HTTP/1.1
					protocols := []string{"h2"}
					if !slices.Contains(hello.SupportedProtos, "h2") {
						protocols = []string{"none"}
					}
					return &tls.Config{ClientAuth: tls.RequireAnyClientCert, Certificates: s.TLS.Certificates, NextProtos: protocols}, nil
				}
			}
			s.Config.ErrorLog = log.New(io.Discard, "", 0)
			s.StartTLS()
			defer s.Close()
			h := at(s.URL)
			h.Key = tt.name
			h.Header = http.Header{"X-Own": {"mine"}}
			h.TLS, h.Away = &tls.Config{InsecureSkipVerify: tt.skip}, &tls.Config{}
			if tt.roots {
				h.TLS.RootCAs = x509.NewCertPool()
				h.TLS.RootCAs.AddCert(s.Certificate())
				h.TLS.RootCAs.AddCert(other.Certificate())
				h.Away.RootCAs = h.TLS.RootCAs
			}
			if tt.client {
				h.TLS.Certificates = s.TLS.Certificates
			}
			repo := openAt(t, Options{Hosts: []hosts.Host{h}}, strings.TrimPrefix(s.URL, "https://")+"/app:v1")
			_, err := repo.Resolve(t.Context())
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if b, err := read(t, repo.Blob(d), 5, 10); err != nil || !bytes.Equal(b, content[5:15]) {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

// tunnel is a proxy for HTTPS that counts what goes through it.
func tunnel(t *testing.T) (*httptest.Server, *atomic.Int64) {
	var n atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		n.Add(1)
		to, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer to.Close()
		w.WriteHeader(http.StatusOK)
		from, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer from.Close()
		go io.Copy(to, from)
		io.Copy(from, to)
	}))
	t.Cleanup(s.Close)
	return s, &n
}

// TestProxy goes through a proxy that a host's settings name.
func TestProxy(t *testing.T) {
	f := newFake(t)
	f.addManifest("v1", []byte(ociManifest))
	s := httptest.NewTLSServer(f)
	defer s.Close()
	proxy, n := tunnel(t)
	h := at(s.URL)
	h.Key = "proxied"
	h.TLS = &tls.Config{RootCAs: x509.NewCertPool()}
	h.TLS.RootCAs.AddCert(s.Certificate())
	h.Proxy, _ = url.Parse(proxy.URL)
	if _, err := openAt(t, Options{Hosts: []hosts.Host{h}}, "r.example/app:v1").Resolve(t.Context()); err != nil || n.Load() == 0 {
		t.Errorf("%d tunnels, %v", n.Load(), err)
	}
}

const proxyEnv = "PEX_TEST_PROXIED" // what a process of TestProxyFromEnvironment gets

// TestProxyFromEnvironment runs itself with HTTPS_PROXY and NO_PROXY: the environment is looked at once.
func TestProxyFromEnvironment(t *testing.T) {
	if name := os.Getenv(proxyEnv); name != "" {
		repo := openAt(t, Options{Retry: quick}, name)
		if _, err := repo.Probe(context.Background()); err == nil {
			t.Error("nobody has that name")
		}
		return
	}
	proxy, n := tunnel(t)
	for _, tt := range []struct {
		name string
		none string
		want bool
	}{{name: "registry.invalid/app:v1", want: true}, {name: "registry.invalid/app:v1", none: "other.invalid", want: true}, {name: "registry.invalid/app:v1", none: ".invalid"}} {
		n.Store(0)
		cmd := exec.Command(os.Args[0], "-test.run", "^TestProxyFromEnvironment$")
		cmd.Env = append(os.Environ(), proxyEnv+"="+tt.name, "HTTPS_PROXY="+proxy.URL, "NO_PROXY="+tt.none)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if (n.Load() > 0) != tt.want {
			t.Errorf("NO_PROXY=%s: %d requests went by the proxy", tt.none, n.Load())
		}
	}
}

// TestMirrorNames asks servers of any name for the repository that is meant, and for tokens for that.
func TestMirrorNames(t *testing.T) {
	for _, tt := range []struct{ name, host, ref, want, scope string }{
		{name: "without a dot", host: "mirror", ref: "quay.io/team/app:1", want: "http://mirror/v2/team/app/manifests/1?ns=quay.io", scope: "repository:team/app:pull"},
		{name: "without a dot, of the hub", host: "mirror", ref: "alpine:1", want: "http://mirror/v2/library/alpine/manifests/1?ns=docker.io", scope: "repository:library/alpine:pull"},
		{name: "a port", host: "mirror:80", ref: "quay.io/app:1", want: "http://mirror:80/v2/app/manifests/1?ns=quay.io", scope: "repository:app:pull"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := openAt(t, Options{Hosts: []hosts.Host{at("http://" + tt.host)}}, tt.ref).endpoints[0]
			if got := e.url("manifests", "1").String(); got != tt.want {
				t.Errorf("it is asked for %s, want %s", got, tt.want)
			}
			if got := e.session.repo.Scope("pull"); got != tt.scope {
				t.Errorf("the token is for %s, want %s", got, tt.scope)
			}
		})
	}
}

// TestOwnServer tells a registry's own server, which is shown the registry's credentials and no ns, from those that stand for it.
func TestOwnServer(t *testing.T) {
	for _, tt := range []struct {
		root, ref string
		want      bool
	}{
		{"https://r.example", "r.example/app", true},
		{"https://r.example:443", "r.example/app", true},
		{"https://R.example", "r.example/app", true},
		{"https://r.example", "r.example:443/app", true},
		{"http://r.example:80", "r.example/app", true},
		{"https://r.example:5000", "r.example:5000/app", true},
		{"https://r.example:5000", "r.example/app", false},
		{"https://r.example", "r.example:5000/app", false},
		{"http://r.example", "r.example:443/app", false},
		{"https://m.example", "r.example/app", false},
		{"https://registry-1.docker.io", "alpine", true},
		{"https://registry-1.docker.io:443", "alpine", true},
		{"https://docker.io", "alpine", true},
		{"https://docker.io:5000", "alpine", false},
		{"https://m.example", "alpine", false},
		{"https://docker.io", "r.example/app", false},
	} {
		t.Run(tt.root+" for "+tt.ref, func(t *testing.T) {
			h := at(tt.root)
			repo := openAt(t, Options{Hosts: []hosts.Host{h}, Auth: authn.AuthConfig{Username: "own"}, HostAuth: map[string]authn.AuthConfig{h.Root.Host: {Username: "other"}}}, tt.ref)
			e := repo.endpoints[0]
			want := map[bool]string{true: "own", false: "other"}[tt.want]
			if got := e.session.credentials().Username; got != want || (e.ns == "") != tt.want {
				t.Errorf("it is shown the credentials of %q and ns %q", got, e.ns)
			}
		})
	}
}
