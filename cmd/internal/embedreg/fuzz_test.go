package embedreg

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pexfs/pex/lazy/ref"
)

// upload stands in a request of FuzzRequests for the upload that was started last.
const upload = "UPLOAD"

// FuzzRequests sends requests, one behind the other as on a connection. Whatever they are, the registry answers by the protocol, keeps to
// its folder, and keeps nothing under a digest that isn't that of its bytes, nor anything that refers to what isn't there.
func FuzzRequests(f *testing.F) {
	const (
		emptyObject = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a" // {}
		manifest    = `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,"digest":"sha256:` + emptyObject + `"},"layers":[]}`
		index       = `{"schemaVersion":2,"manifests":[]}`
	)
	put := func(path, body string, headers ...string) string {
		r := httptest.NewRequest(http.MethodPut, path, strings.NewReader(body))
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		var b bytes.Buffer
		if err := r.Write(&b); err != nil {
			f.Fatal(err)
		}
		return b.String()
	}
	get := func(method, path string) string { return method + " " + path + " HTTP/1.1\r\nHost: x\r\n\r\n" }
	blob := get("POST", "/v2/a/b/blobs/uploads/") + put("/v2/a/b/blobs/uploads/"+upload+"?digest=sha256:"+emptyObject, "{}")
	for _, s := range []string{
		get("GET", "/v2/") + get("GET", StatsPath) + get("HEAD", "/v2/a/manifests/x"),
		blob + put("/v2/a/b/manifests/v1", manifest, "Content-Type", "application/vnd.oci.image.manifest.v1+json") + get("GET", "/v2/a/b/manifests/v1") + get("GET", "/v2/a/b/tags/list?n=1&last=a"),
		blob + get("GET", "/v2/a/b/blobs/sha256:"+emptyObject) + get("DELETE", "/v2/a/b/blobs/sha256:"+emptyObject),
		blob + get("POST", "/v2/c/blobs/uploads/?mount=sha256:"+emptyObject+"&from=a/b"),
		get("POST", "/v2/a/blobs/uploads/") + "PATCH /v2/a/blobs/uploads/" + upload + " HTTP/1.1\r\nHost: x\r\nContent-Range: 0-1\r\nContent-Length: 2\r\n\r\n{}" + get("GET", "/v2/a/blobs/uploads/"+upload) + get("DELETE", "/v2/a/blobs/uploads/"+upload),
		put("/v2/a/manifests/v1", index) + get("DELETE", "/v2/a/manifests/v1") + get("GET", "/v2/a/tags/list"),
		put("/v2/a/manifests/latest", manifest) + put("/v2/a/_tags/manifests/v1", index) + put("/v2/a/../../manifests/v1", index),
		"POST /v2/a/blobs/uploads/?digest=sha256:" + emptyObject + " HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n{}\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "registry")
		r, err := Open(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		last := strings.Repeat("0", 32)
		in := bufio.NewReader(bytes.NewReader(data))
		for range 16 {
			req, err := http.ReadRequest(in)
			if err != nil {
				break
			}
			req.URL.Path = strings.ReplaceAll(req.URL.Path, upload, last)
			body := &body{ReadCloser: req.Body}
			req.Body = body
			w := httptest.NewRecorder()
			r.ServeHTTP(w, req)
			if w.Code < 200 || w.Code > 599 || w.Code >= 500 && !body.broken {
				t.Errorf("%s %s: status %d: %s", req.Method, req.URL, w.Code, w.Body)
			}
			if id := w.Header().Get("Docker-Upload-UUID"); id != "" {
				last = id
			}
		}
		checkFolder(t, outer, dir)
	})
}

// body knows whether it broke off, which is the client's fault and has no status of its own.
type body struct {
	io.ReadCloser
	broken bool
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.broken = b.broken || err != nil && err != io.EOF
	return n, err
}

// checkFolder checks what a registry keeps, and that it keeps it nowhere else.
func checkFolder(t *testing.T, outer, dir string) {
	t.Helper()
	if all, err := os.ReadDir(outer); err != nil || len(all) != 1 {
		t.Errorf("beside the registry's folder there are %v, %v", all, err)
	}
	exists := func(elem ...string) bool {
		_, err := os.Stat(filepath.Join(append([]string{dir}, elem...)...))
		return err == nil
	}
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		parts := strings.Split(name, "/")
		n := len(parts)
		switch {
		case name == "lock":
		case parts[0] == "uploads" && n == 2 && idRE.MatchString(parts[1]):
		case parts[0] == "blobs" && n == 3 && parts[1] == "sha256":
			if h := sha256.Sum256(b); hex.EncodeToString(h[:]) != parts[2] {
				t.Errorf("blob %s has other bytes", parts[2])
			}
		case parts[0] == "repositories" && n > 4 && parts[n-3] == "_manifests" && parts[n-2] == "sha256" && nameRE.MatchString(strings.Join(parts[1:n-3], "/")):
			body, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", parts[n-1]))
			if err != nil {
				t.Errorf("manifest %s: %v", name, err)
			} else if kind, err := ref.Kind(body, types.MediaType(b)); err != nil || string(kind) != string(b) {
				t.Errorf("manifest %s is kept as %s: %v", name, b, err)
			}
		case parts[0] == "repositories" && n > 3 && parts[n-2] == "_tags" && tagRE.MatchString(parts[n-1]):
			alg, hexDigest, ok := strings.Cut(string(b), ":")
			if !ok || !exists("blobs", alg, hexDigest) {
				t.Errorf("tag %s stands for %q, which isn't there", name, b)
			}
		default:
			t.Errorf("there is a file %s", name)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
