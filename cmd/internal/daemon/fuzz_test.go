package daemon

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/store"
)

// Words of a request in FuzzRequests that stand for the image that the cache has, and for the layout that it came from.
const keyWord, layoutWord = "KEY", "LAYOUT"

// FuzzRequests sends requests to a daemon whose cache has an image of which little is there; a line is a method, a path and a body. Answers
// are in their forms, bytes that are said to be present are, and right, nothing outside of the cache folder is touched, and nothing of a
// request is left when it has ended.
func FuzzRequests(f *testing.F) {
	home := f.TempDir() // no credentials, and no programs that know some
	for _, name := range []string{"HOME", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "REGISTRY_AUTH_FILE"} {
		f.Setenv(name, home)
	}
	img := writeLayout(f)
	want := imageBytes(f, img)
	for _, s := range []string{
		"GET /v1/ping\nGET /v1/status\nPOST /v1/stop\nGET /v1/status",
		"POST /v1/images/KEY/need {\"off\":0,\"n\":1}\nPOST /v1/images/KEY/need {\"off\":2097152,\"n\":8192}\nGET /v1/status",
		"POST /v1/images/KEY/need {\"off\":-1,\"n\":9223372036854775807}\nPOST /v1/images/KEY/need {\"off\":9223372036854775807,\"n\":9223372036854775807}",
		"POST /v1/images/KEY/need {\"off\":0,\"n\":99999999}\nPOST /v1/images/KEY/need {\"off\":5,\"n\":0}\nPOST /v1/images/KEY/need {\"off\":2100000,\"n\":-4}",
		"GET /v1/images/KEY/lease?who=me&fill=1\nDELETE /v1/images/KEY\nGET /v1/status",
		"DELETE /v1/images/KEY\nPOST /v1/images/KEY/need {\"off\":0,\"n\":1}\nPOST /v1/open {\"ref\":\"oci:LAYOUT\",\"fill\":true}\nGET /v1/images/KEY/wait",
		"GET /v1/images/KEY/wait\nPOST /v1/images/KEY/fsck {}\nPOST /v1/images/KEY/fsck {\"heal\":true,\"auth\":{\"username\":\"u\",\"password\":\"p\"}}",
		"POST /v1/open {\"ref\":\"oci:LAYOUT\",\"platform\":\"linux/amd64\",\"strict\":true,\"verify\":true,\"maxSize\":1,\"maxEntries\":-1}",
		"POST /v1/open {\"ref\":\"registry.example/a:b\",\"insecure\":true,\"auth\":{\"username\":\"u\",\"password\":\"p\"}}\nPOST /v1/open {\"ref\":\"oci:/nowhere\"}",
		"DELETE /v1/images/..%2Fother\nDELETE /v1/images/..%2F..%2Fbeside\nDELETE /v1/images/%2E\nGET /v1/images/..%2F../lease",
		"POST /v1/open {\"ref\":\"\",\"x\":1}\nPOST /v1/open []\nPOST /v1/open\nPUT /v1/open {}\nGET //v1/../v1/status\nGET /v1/images//wait",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		outer := t.TempDir()
		mark := filepath.Join(outer, "beside")
		if err := os.Mkdir(mark, 0o700); err != nil {
			t.Fatal(err)
		}
		s := newServer(t, filepath.Join(outer, "cache"))
		o, err := s.openImage(s.ctx, OpenRequest{Ref: "oci:" + img}, newLines(httptest.NewRecorder()))
		if err != nil {
			t.Fatal(err)
		}
		h := s.routes()
		for n, line := range strings.Split(string(data), "\n") {
			if n == 8 {
				break
			}
			serve(t, s, h, o, want, strings.NewReplacer(keyWord, string(o.Key), layoutWord, img).Replace(line))
		}
		s.stop()
		s.end()
		if s.busy != 0 || len(s.leases) != 0 || len(s.opening) != 0 {
			t.Errorf("%d pieces of work are left, leases of %d images, %d openings", s.busy, len(s.leases), len(s.opening))
		}
		if err := errors.Join(s.cache.Close(), s.st.Close()); err != nil {
			t.Error(err)
		}
		if all, err := os.ReadDir(outer); err != nil || len(all) != 2 || all[0].Name() != "beside" {
			t.Errorf("beside the cache folder there are %v, %v", all, err)
		}
	})
}

// nowhere has no image of any name.
type nowhere struct{}

func (nowhere) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusNotFound, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
}

// newServer makes a server as Run does, on a folder of its own.
func newServer(t testing.TB, dir string) *server {
	st, err := store.Open(dir)
	if err == nil {
		err = st.Lock()
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	log := slog.New(slog.DiscardHandler)
	s := &server{
		st: st, log: log, started: time.Now(), ctx: ctx, stop: cancel,
		leases: make(map[store.Key]map[*lease]bool), removing: make(map[store.Key]chan struct{}), opening: make(map[*Opening]bool), opened: make(map[store.Key]time.Time), idle: time.Now(),
	}
	s.cache = lazy.NewCache(st, lazy.Options{Log: log, Claim: s.claim})
	s.measure(nowhere{}, "test")
	return s
}

// client takes an answer, and hangs up once it has something of one that has no end of its own.
type client struct {
	*httptest.ResponseRecorder
	hangUp func()
}

func (c *client) Flush() {
	c.ResponseRecorder.Flush()
	c.hangUp()
}

// aborted tells whether a handler breaks its answer off.
func aborted(handle func()) (yes bool) {
	defer func() {
		if v := recover(); v == http.ErrAbortHandler {
			yes = true
		} else if v != nil {
			panic(v)
		}
	}()
	handle()
	return false
}

// serve sends a request and judges its answer.
func serve(t *testing.T, s *server, h http.Handler, o *Opened, want []byte, line string) {
	method, rest, _ := strings.Cut(line, " ")
	target, body, _ := strings.Cut(rest, " ")
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
	if err != nil {
		return // no client can send it
	}
	w := &client{httptest.NewRecorder(), func() {}}
	endless := strings.HasSuffix(r.URL.Path, "/lease") || strings.HasSuffix(r.URL.Path, "/wait")
	if endless {
		w.hangUp = cancel
	}
	if aborted(func() { h.ServeHTTP(w, r) }) {
		if s.ctx.Err() == nil {
			t.Errorf("%q: no answer", line)
		}
		return
	}
	got := w.Body.Bytes()
	if w.Header().Get("Content-Type") == "application/json" && w.Code >= 400 {
		var e Error
		if decode(t, got, &e); e.Text == "" {
			t.Errorf("%q: status %d, and no error in %q", line, w.Code, got)
		}
		return
	}
	switch {
	case w.Code >= 500:
		t.Errorf("%q: status %d: %s", line, w.Code, got)
	case w.Code >= 300:
		// the router's answers, which have their own form
	case w.Header().Get("Content-Type") == "application/x-ndjson":
		var last Message
		for l := range bytes.Lines(got) {
			last = Message{}
			decode(t, l, &last)
		}
		if last.Error == nil && last.Opened == nil && last.Fsck == nil && !endless {
			t.Errorf("%q: the last line is %q", line, got)
		}
	case r.URL.Path == "/v1/status":
		var st Status
		if decode(t, got, &st); st.Cache != s.st.Dir() {
			t.Errorf("status of folder %q", st.Cache)
		}
	case strings.HasSuffix(r.URL.Path, "/need"):
		var n NeedRequest
		if err := json.NewDecoder(strings.NewReader(body)).Decode(&n); err != nil {
			t.Fatalf("%q is answered with %d", line, w.Code)
		}
		checkPresent(t, o.Dir, want, n)
	}
}

// decode reads an answer, which has nothing in it that isn't declared.
func decode(t *testing.T, b []byte, v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Errorf("answer %q: %v", b, err)
	}
}

// checkPresent checks that a view can read what a need was answered for.
func checkPresent(t *testing.T, dir string, want []byte, n NeedRequest) {
	t.Helper()
	if n.N == 0 {
		return
	}
	if n.Off < 0 || n.N < 0 || n.Off > int64(len(want))-n.N {
		t.Fatalf("%d bytes at %d are present, of %d", n.N, n.Off, len(want))
	}
	v, err := store.OpenView(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if !v.Has(n.Off, n.N) {
		t.Fatalf("%d bytes at %d are said to be present", n.N, n.Off)
	}
	got := make([]byte, n.N)
	if _, err := v.File().ReadAt(got, n.Off); err != nil || !bytes.Equal(got, want[n.Off:][:n.N]) {
		t.Errorf("%d bytes at %d are not the image's (%v)", n.N, n.Off, err)
	}
}

// writeLayout makes an OCI layout of an image with a lazy layer and a streamed one.
func writeLayout(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	lower, upper := tarOf(t, "f", strings.Repeat("lower", 5000)), tarOf(t, "g", strings.Repeat("upper", 700))
	z, err := estargz.Build(io.NewSectionReader(bytes.NewReader(lower), 0, int64(len(lower))), estargz.WithChunkSize(8192))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	lazyBlob, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	var adds []mutate.Addendum
	for _, b := range [][]byte{lazyBlob, upper} {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
		if err != nil {
			t.Fatal(err)
		}
		adds = append(adds, mutate.Addendum{Layer: l})
	}
	adds[0].Annotations = map[string]string{estargz.TOCJSONDigestAnnotation: z.TOCDigest().String()}
	im, err := mutate.Append(empty.Image, adds...)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(im); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tarOf makes a tar of one file.
func tarOf(t testing.TB, name, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))})
	if err == nil {
		_, err = io.WriteString(w, content)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// imageBytes gives the whole of the image that is made of a layout.
func imageBytes(t testing.TB, img string) []byte {
	t.Helper()
	s := newServer(t, t.TempDir())
	defer s.stop()
	o, err := s.openImage(s.ctx, OpenRequest{Ref: "oci:" + img}, newLines(httptest.NewRecorder()))
	if err != nil {
		t.Fatal(err)
	}
	im, err := s.cache.Image(s.ctx, o.Key)
	if err == nil {
		err = im.Fill(s.ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(im.File())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.cache.Close(), s.st.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}
