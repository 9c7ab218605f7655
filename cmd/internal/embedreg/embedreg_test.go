package embedreg

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/blob/blobtest"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/registry"
)

// start serves the registry of a folder until the test, or the returned func, ends it.
func start(t *testing.T, dir string) (*Registry, *httptest.Server, func()) {
	t.Helper()
	r, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(r)
	ended := false
	end := func() {
		if ended {
			return
		}
		ended = true
		srv.Close()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(end)
	return r, srv, end
}

func host(srv *httptest.Server) string { return strings.TrimPrefix(srv.URL, "http://") }

func parse(t *testing.T, s string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestClient pushes and pulls with go-containerregistry, over a restart.
func TestClient(t *testing.T) {
	dir := t.TempDir()
	_, srv, end := start(t, dir)
	img, err := random.Image(200_000, 3)
	if err != nil {
		t.Fatal(err)
	}
	idx, err := random.Index(10_000, 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(parse(t, host(srv)+"/a/image:v1"), img); err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(parse(t, host(srv)+"/a/index:v1"), idx); err != nil {
		t.Fatal(err)
	}
	if err := remote.Tag(parse(t, host(srv)+"/a/image:v2").(name.Tag), img); err != nil {
		t.Fatal(err)
	}
	end()

	_, srv, _ = start(t, dir)
	for _, tag := range []string{"v1", "v2"} {
		got, err := remote.Image(parse(t, host(srv)+"/a/image:"+tag))
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(got); err != nil {
			t.Error(err)
		}
		same(t, img, got)
	}
	gotIdx, err := remote.Index(parse(t, host(srv)+"/a/index:v1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(gotIdx); err != nil {
		t.Error(err)
	}
	same(t, idx, gotIdx)
	tags, err := remote.List(parse(t, host(srv)+"/a/image").Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"v1", "v2"}, tags); diff != "" {
		t.Error(diff)
	}
}

func same(t *testing.T, want, got interface{ Digest() (v1.Hash, error) }) {
	t.Helper()
	w, err := want.Digest()
	if err != nil {
		t.Fatal(err)
	}
	g, err := got.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if w != g {
		t.Errorf("digest %s, want %s", g, w)
	}
}

func TestConformance(t *testing.T) {
	blobtest.Run(t, func(t *testing.T, b []byte) blob.Source {
		_, srv, _ := start(t, t.TempDir())
		h := push(t, srv, b)
		r, err := ref.Parse(host(srv) + "/app")
		if err != nil {
			t.Fatal(err)
		}
		transport := registry.NewTransport()
		t.Cleanup(transport.CloseIdleConnections)
		repo, err := registry.Open(r, registry.Options{Transport: transport})
		if err != nil {
			t.Fatal(err)
		}
		return repo.Blob(v1.Descriptor{Digest: h, Size: int64(len(b))})
	})
}

// push uploads a blob in one request.
func push(t *testing.T, srv *httptest.Server, b []byte) v1.Hash {
	t.Helper()
	h, _, err := v1.SHA256(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if status, _, body := do(t, srv, "POST", "/v2/app/blobs/uploads/?digest="+h.String(), b, nil); status != http.StatusCreated {
		t.Fatalf("pushing: %d %s", status, body)
	}
	return h
}

func do(t *testing.T, srv *httptest.Server, method, path string, body []byte, header http.Header) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

func TestUploadInPieces(t *testing.T) {
	_, srv, _ := start(t, t.TempDir())
	content := []byte("hello, registry")
	h, _, err := v1.SHA256(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	status, header, _ := do(t, srv, "POST", "/v2/app/blobs/uploads/", nil, nil)
	at := header.Get("Location")
	if status != http.StatusAccepted {
		t.Fatalf("POST: %d", status)
	}
	steps := []struct {
		method, path, body, contentRange string
		want                             int
		wantRange                        string
	}{
		{"PATCH", at, "hello", "", 202, "0-4"},
		{"PATCH", at, ", reg", "5-9", 202, "0-9"},
		{"PATCH", at, "xxx", "5-7", 416, ""},
		{"GET", at, "", "", 204, "0-9"},
		{"PUT", at + "?digest=" + h.String(), "istry", "", 201, ""},
		{"PUT", at + "?digest=" + h.String(), "", "", 404, ""},
		{"PATCH", "/v2/app/blobs/uploads/../../x", "", "", 404, ""},
		{"PATCH", "/v2/app/blobs/uploads/" + strings.Repeat("0", 32), "", "", 404, ""},
	}
	for _, s := range steps {
		hd := http.Header{}
		if s.contentRange != "" {
			hd.Set("Content-Range", s.contentRange)
		}
		status, header, body := do(t, srv, s.method, s.path, []byte(s.body), hd)
		if status != s.want || s.wantRange != "" && header.Get("Range") != s.wantRange {
			t.Errorf("%s %s: %d %q %s, want %d %q", s.method, s.path, status, header.Get("Range"), body, s.want, s.wantRange)
		}
	}
	if _, _, body := do(t, srv, "GET", "/v2/other/blobs/"+h.String(), nil, nil); body != string(content) {
		t.Errorf("the blob is %q", body)
	}
	// An upload that doesn't keep its promise is gone.
	_, header, _ = do(t, srv, "POST", "/v2/app/blobs/uploads/", nil, nil)
	at = header.Get("Location")
	if status, _, _ := do(t, srv, "PUT", at+"?digest="+h.String(), []byte("other"), nil); status != 400 {
		t.Errorf("PUT of something else: %d", status)
	}
	if status, _, _ := do(t, srv, "GET", at, nil, nil); status != 404 {
		t.Errorf("GET of the upload: %d", status)
	}
}

func TestRequests(t *testing.T) {
	dir := t.TempDir()
	r, srv, _ := start(t, dir)
	content := blobtest.Random(1000)
	h := push(t, srv, content)
	const zeros = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	manifest := fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":%q,"size":1000},"layers":[]}`, h)
	for _, tt := range []struct {
		method, path, body, contentType, rng string
		want                                 int
		code                                 string
	}{
		{method: "GET", path: "/v2/", want: 200},
		{method: "GET", path: "/v2", want: 200},
		{method: "GET", path: "/", want: 404},
		{method: "GET", path: "/v2/_catalog", want: 404},
		{method: "GET", path: "/v2/app/blobs/" + h.String(), want: 200},
		{method: "HEAD", path: "/v2/app/blobs/" + h.String(), want: 200},
		{method: "GET", path: "/v2/app/blobs/" + h.String(), rng: "bytes=10-19", want: 206},
		{method: "GET", path: "/v2/app/blobs/" + h.String(), rng: "bytes=2000-", want: 416},
		{method: "GET", path: "/v2/app/blobs/" + zeros, want: 404, code: "BLOB_UNKNOWN"},
		{method: "GET", path: "/v2/app/blobs/sha256:..%2f..%2flock", want: 404},
		{method: "GET", path: "/v2/app/blobs/..", want: 400, code: "DIGEST_INVALID"},
		{method: "DELETE", path: "/v2/app/blobs/" + h.String(), want: 405, code: "UNSUPPORTED"},
		{method: "GET", path: "/v2/App/blobs/" + h.String(), want: 400, code: "NAME_INVALID"},
		{method: "GET", path: "/v2/a/../../b/tags/list", want: 400, code: "NAME_INVALID"},
		{method: "GET", path: "/v2/_tags/manifests/v1", want: 400, code: "NAME_INVALID"},
		{method: "POST", path: "/v2/app/blobs/uploads/?mount=" + h.String() + "&from=other", want: 201},
		{method: "GET", path: "/v2/app/blobs/uploads/", want: 405},
		{method: "POST", path: "/v2/app/blobs/uploads/?digest=" + zeros, body: "x", want: 400, code: "DIGEST_INVALID"},
		{method: "PUT", path: "/v2/app/manifests/v1", body: manifest, want: 201},
		{method: "PUT", path: "/v2/app/manifests/" + zeros, body: manifest, want: 400, code: "DIGEST_INVALID"},
		{method: "PUT", path: "/v2/app/manifests/.x", body: manifest, want: 400, code: "TAG_INVALID"},
		{method: "PUT", path: "/v2/app/manifests/v2", body: "x", want: 400, code: "MANIFEST_INVALID"},
		{method: "PUT", path: "/v2/app/manifests/v2", body: strings.Repeat(" ", maxManifest+1), want: 413},
		{method: "PUT", path: "/v2/app/manifests/v2", body: strings.Replace(manifest, h.String(), zeros, 1), want: 404, code: "MANIFEST_BLOB_UNKNOWN"},
		{method: "PUT", path: "/v2/app/manifests/v2", body: fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"digest":%q}]}`, zeros), want: 404, code: "MANIFEST_UNKNOWN"},
		{method: "GET", path: "/v2/app/manifests/v1", want: 200},
		{method: "HEAD", path: "/v2/app/manifests/v1", want: 200},
		{method: "GET", path: "/v2/app/manifests/v2", want: 404, code: "MANIFEST_UNKNOWN"},
		{method: "GET", path: "/v2/other/manifests/v1", want: 404, code: "MANIFEST_UNKNOWN"},
		{method: "GET", path: "/v2/app/tags/list?n=0", want: 200},
		{method: "GET", path: "/v2/app/tags/list?n=x", want: 400},
		{method: "GET", path: "/v2/other/tags/list", want: 404, code: "NAME_UNKNOWN"},
		{method: "DELETE", path: "/v2/app/manifests/v1", want: 202},
		{method: "GET", path: "/v2/app/manifests/v1", want: 404},
		{method: "PATCH", path: "/v2/app/manifests/" + h.String(), want: 404},
	} {
		hd := http.Header{}
		if tt.rng != "" {
			hd.Set("Range", tt.rng)
		}
		if tt.contentType != "" {
			hd.Set("Content-Type", tt.contentType)
		}
		status, _, body := do(t, srv, tt.method, tt.path, []byte(tt.body), hd)
		if status != tt.want || !strings.Contains(body, tt.code) {
			t.Errorf("%s %s: %d %.200s, want %d %s", tt.method, tt.path, status, body, tt.want, tt.code)
		}
	}
	if _, header, _ := do(t, srv, "HEAD", "/v2/app/blobs/"+h.String(), nil, nil); header.Get("Content-Length") != "1000" || header.Get("Accept-Ranges") != "bytes" {
		t.Errorf("HEAD of a blob: %v", header)
	}
	// Nothing is written outside of the folders it should be in.
	entries, err := os.ReadDir(filepath.Join(dir, "repositories"))
	if err != nil || len(entries) != 1 || entries[0].Name() != "app" {
		t.Errorf("repositories: %v, %v", entries, err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "uploads")); err != nil || len(left) != 0 {
		t.Errorf("uploads: %v, %v", left, err)
	}
	before := r.Stats()
	do(t, srv, "GET", "/v2/app/blobs/"+h.String(), nil, http.Header{"Range": {"bytes=0-99"}})
	_, _, body := do(t, srv, "GET", StatsPath, nil, nil)
	var got Stats
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	before.Requests++
	before.Ranges++
	before.Sent += 100
	if diff := cmp.Diff(before, got); diff != "" {
		t.Error(diff)
	}
}

func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	start(t, dir)
	if r, err := Open(dir, nil); err == nil {
		r.Close()
		t.Error("a second registry opened the folder")
	}
}

func TestServe(t *testing.T) {
	r, err := Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- r.Serve(ctx, l) }()
	resp, err := http.Get("http://" + l.Addr().String() + "/v2/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
