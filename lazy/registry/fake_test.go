package registry

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/ref"
)

// fake is a registry with one repository, "app", whose answers a test can replace.
type fake struct {
	*httptest.Server
	t         *testing.T
	blobs     map[string][]byte
	manifests map[string][]byte // by tag or digest
	mediaType types.MediaType

	mu       sync.Mutex
	requests []string // method, path, range
	// before answers in place of the registry, or returns false.
	before func(w http.ResponseWriter, r *http.Request) bool

	// Of token authentication, if user is set.
	user, password string
	tokens         int    // given out
	valid          string // the only token that is accepted
	tokenStatus    int    // of the token server, if not 200
}

func newFake(t *testing.T) *fake {
	f := &fake{t: t, blobs: map[string][]byte{}, manifests: map[string][]byte{}, mediaType: types.OCIManifestSchema1}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fake) host() string { return strings.TrimPrefix(f.URL, "http://") }

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+r.Header.Get("Range")))
	before := f.before
	f.mu.Unlock()
	if before != nil && before(w, r) {
		return
	}
	if r.URL.Path == "/token" {
		f.token(w, r)
		return
	}
	if f.user != "" && !f.authorized(r) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="fake",scope="repository:app:pull"`, f.URL))
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}`)
		return
	}
	if r.URL.Path == "/v2/" {
		return
	}
	id := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	kind := strings.TrimPrefix(strings.TrimSuffix(r.URL.Path, "/"+id), "/v2/app/")
	b, ok := f.blobs[id]
	if kind == "manifests" {
		b, ok = f.manifests[id]
		w.Header().Set("Content-Type", string(f.mediaType))
	}
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such thing"}]}`)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func (f *fake) token(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.tokenStatus != 0 {
		w.WriteHeader(f.tokenStatus)
		return
	}
	if u, p, _ := r.BasicAuth(); u != f.user || p != f.password {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if got := r.URL.Query()["scope"]; len(got) != 1 || got[0] != "repository:app:pull" {
		f.t.Errorf("a token for %q was asked for", got)
	}
	f.tokens++
	f.valid = fmt.Sprintf("token-%d", f.tokens)
	fmt.Fprintf(w, `{"token":%q}`, f.valid)
}

func (f *fake) authorized(r *http.Request) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.valid != "" && r.Header.Get("Authorization") == "Bearer "+f.valid
}

func (f *fake) expire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.valid = ""
}

// log gives the requests so far and forgets them.
func (f *fake) log() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.requests
	f.requests = nil
	return l
}

func (f *fake) addBlob(b []byte) v1.Descriptor {
	h, size, err := v1.SHA256(bytes.NewReader(b))
	if err != nil {
		f.t.Fatal(err)
	}
	f.blobs[h.String()] = b
	return v1.Descriptor{MediaType: types.OCILayer, Digest: h, Size: size}
}

func (f *fake) addManifest(tag string, b []byte) v1.Descriptor {
	h, size, err := v1.SHA256(bytes.NewReader(b))
	if err != nil {
		f.t.Fatal(err)
	}
	f.manifests[h.String()] = b
	f.manifests[tag] = b
	return v1.Descriptor{MediaType: f.mediaType, Digest: h, Size: size}
}

// quick is a policy that doesn't hold tests up.
var quick = blob.Policy{MinWait: time.Millisecond, MaxWait: 5 * time.Millisecond, Idle: 10 * time.Second}

// open opens app:v1 of the registry at host.
func open(t *testing.T, host, suffix string, auth authn.AuthConfig) *Repo {
	t.Helper()
	r, err := ref.Parse(host + "/app" + suffix)
	if err != nil {
		t.Fatal(err)
	}
	transport := NewTransport()
	t.Cleanup(transport.CloseIdleConnections)
	repo, err := Open(r, Options{Auth: auth, Transport: transport, Retry: quick})
	if err != nil {
		t.Fatal(err)
	}
	return repo
}
