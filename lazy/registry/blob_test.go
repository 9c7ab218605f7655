package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/blob/blobtest"
)

func TestConformance(t *testing.T) {
	blobtest.Run(t, func(t *testing.T, b []byte) blob.Source {
		f := newFake(t)
		return open(t, f.host(), ":v1", authn.AuthConfig{}).Blob(f.addBlob(b))
	})
}

func TestRequests(t *testing.T) {
	f := newFake(t)
	content := blobtest.Random(1000)
	d := f.addBlob(content)
	src := open(t, f.host(), ":v1", authn.AuthConfig{}).Blob(d)
	for _, r := range [][2]int64{{0, 1000}, {0, 999}, {10, 20}} {
		if _, err := read(t, src, r[0], r[1]); err != nil {
			t.Fatal(err)
		}
	}
	path := "GET /v2/app/blobs/" + d.Digest.String()
	want := []string{path, path + " bytes=0-998", path + " bytes=10-29"}
	if diff := cmp.Diff(want, f.log()); diff != "" {
		t.Error(diff)
	}
}

func read(t *testing.T, src blob.Source, off, n int64) ([]byte, error) {
	t.Helper()
	rc, err := src.Fetch(t.Context(), off, n)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(rc)
	if cerr := rc.Close(); cerr != nil {
		t.Error(cerr)
	}
	return b, err
}

// TestFaults has a registry answer wrongly, the first times or always, and reads through blob.Retry.
func TestFaults(t *testing.T) {
	const size = 3 << 20
	content := blobtest.Random(size)
	status := func(code int, header ...string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
		}
	}
	whole := func(w http.ResponseWriter, _ *http.Request) { w.Write(content) }
	for _, tt := range []struct {
		name    string
		off, n  int64
		times   int // how many answers are wrong; 0: all
		answer  func(w http.ResponseWriter, r *http.Request)
		idle    time.Duration
		wantErr error
		errText string
		max     int // requests for the blob, at most; 0: any number
	}{
		{name: "cut bodies", n: size, times: 3, answer: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(size))
			w.Write(content[:300_000])
			panic(http.ErrAbortHandler)
		}, max: 4},
		{name: "cut ranges", off: 1000, n: size - 2000, times: 3, answer: func(w http.ResponseWriter, r *http.Request) {
			var a, b int
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &a, &b)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", a, b, size))
			w.Header().Set("Content-Length", fmt.Sprint(b-a+1))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(content[a : a+100_000])
			panic(http.ErrAbortHandler)
		}, max: 4},
		{name: "shorter range than asked", off: 1000, n: 500_000, times: 2, answer: func(w http.ResponseWriter, r *http.Request) {
			var a, b int
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &a, &b)
			b = a + 99_999
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", a, b))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(content[a : b+1])
		}, max: 3},
		{name: "half of each range", off: 1000, n: 500_000, answer: func(w http.ResponseWriter, r *http.Request) {
			var a, b int
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &a, &b)
			b = a + (b-a)/2
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", a, b))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(content[a : b+1])
		}, max: 20},
		{name: "a byte of each range", off: 1000, n: 500_000, answer: func(w http.ResponseWriter, r *http.Request) {
			var a int
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &a)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", a, a))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(content[a : a+1])
		}, errText: "giving up", max: 6 * 48},
		{name: "too many requests", off: 5, n: 10, times: 2, answer: status(429, "Retry-After", "0"), max: 3},
		{name: "unavailable", off: 5, n: 10, times: 2, answer: status(503), max: 3},
		{name: "unavailable for an hour", off: 5, n: 10, answer: status(503, "Retry-After", "3600"), errText: "503", max: 1},
		{name: "unavailable for ever", off: 5, n: 10, answer: status(503), errText: "giving up after 6 attempts", max: 6},
		{name: "whole for a range near the start", off: 1000, n: 5000, answer: whole, wantErr: blob.ErrRangeUnsupported, max: 1},
		{name: "whole for a range", off: 2 << 20, n: 5000, answer: whole, wantErr: blob.ErrRangeUnsupported, max: 1},
		{name: "whole of another size", off: 0, n: size, wantErr: blob.ErrDigestMismatch, max: 1,
			answer: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", "3")
				w.Write([]byte("abc"))
			}},
		{name: "whole, cut, no ranges", off: 0, n: size, times: 1, answer: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(size))
			w.Write(content[:2_500_000])
			panic(http.ErrAbortHandler)
		}},
		{name: "no Content-Range", off: 5, n: 10, answer: status(206), wantErr: blob.ErrRangeUnsupported, max: 1},
		{name: "other range", off: 5, n: 10, answer: status(206, "Content-Range", fmt.Sprintf("bytes 6-14/%d", size)),
			wantErr: blob.ErrRangeUnsupported, max: 1},
		{name: "longer range", off: 5, n: 10, answer: status(206, "Content-Range", fmt.Sprintf("bytes 5-15/%d", size)),
			wantErr: blob.ErrRangeUnsupported, max: 1},
		{name: "other size", off: 5, n: 10, answer: status(206, "Content-Range", "bytes 5-14/77"),
			wantErr: blob.ErrRangeUnsupported, max: 1},
		{name: "several parts", off: 5, n: 10, answer: status(206, "Content-Type", "multipart/byteranges; boundary=x"),
			wantErr: blob.ErrRangeUnsupported, max: 1},
		{name: "not satisfiable", off: 5, n: 10, answer: status(416), wantErr: blob.ErrRangeUnsupported, max: 1},
		{name: "not implemented", off: 5, n: 10, answer: status(501), wantErr: blob.ErrRangeUnsupported, max: 1},
		{name: "not found", off: 5, n: 10, answer: status(404), wantErr: ErrNotFound, max: 1},
		{name: "forbidden", off: 5, n: 10, answer: status(403), wantErr: ErrUnauthorized, max: 1},
		{name: "unauthorized", off: 5, n: 10, answer: status(401), wantErr: ErrUnauthorized, max: 1},
		{name: "teapot", off: 5, n: 10, answer: status(418), errText: "418", max: 1},
		{name: "redirected in circles", off: 5, n: 10, errText: "too many redirects",
			answer: func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }},
		{name: "hangs before the answer", off: 5, n: 10, times: 1, idle: 50 * time.Millisecond,
			answer: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		{name: "hangs within", off: 5, n: 1_000_000, times: 1, idle: 200 * time.Millisecond,
			answer: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 5-1000004/%d", size))
				w.WriteHeader(http.StatusPartialContent)
				w.Write(content[5:1000])
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			d := f.addBlob(content)
			calls := 0
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/blobs/") {
					return false
				}
				f.mu.Lock()
				calls++
				wrong := tt.times == 0 || calls <= tt.times
				f.mu.Unlock()
				if wrong {
					tt.answer(w, r)
				} else if tt.name == "whole, cut, no ranges" {
					whole(w, r)
					return true
				}
				return wrong
			}
			p := quick
			if tt.idle != 0 {
				p.Idle = tt.idle
			}
			src := blob.Retry(open(t, f.host(), ":v1", authn.AuthConfig{}).Blob(d), p)
			got, err := read(t, src, tt.off, tt.n)
			if tt.max != 0 && calls > tt.max {
				t.Errorf("%d requests, want at most %d", calls, tt.max)
			}
			if tt.wantErr != nil || tt.errText != "" {
				if tt.wantErr != nil && !errors.Is(err, tt.wantErr) || err == nil || !strings.Contains(err.Error(), tt.errText) {
					t.Errorf("error %v, want %v %q", err, tt.wantErr, tt.errText)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, content[tt.off:tt.off+tt.n]) {
				t.Error("other bytes")
			}
		})
	}
}

func TestFetchEndsWithContext(t *testing.T) {
	f := newFake(t)
	d := f.addBlob(blobtest.Random(1000))
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			<-r.Context().Done()
		}
		return false
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := open(t, f.host(), ":v1", authn.AuthConfig{}).Blob(d).Fetch(ctx, 0, 10)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestRedirectToAnotherHost(t *testing.T) {
	content := blobtest.Random(10_000)
	expired := false
	var seen []string
	var f *fake
	// The other host has another port: credentials may not go there either.
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		seen = append(seen, r.Header.Get("Range"))
		if a := r.Header.Get("Authorization"); a != "" {
			t.Errorf("the other host got credentials: %s", a)
		}
		if expired {
			expired = false
			w.WriteHeader(http.StatusForbidden)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	defer other.Close()
	f = newFake(t)
	f.user, f.password = "me", "secret"
	d := f.addBlob(content)
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") || !f.authorized(r) {
			return false
		}
		http.Redirect(w, r, other.URL+"/store?signature=secret", http.StatusTemporaryRedirect)
		return true
	}
	src := open(t, f.host(), ":v1", authn.AuthConfig{Username: "me", Password: "secret"}).Blob(d)
	get := func(off, n int64) {
		t.Helper()
		b, err := read(t, src, off, n)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, content[off:off+n]) {
			t.Error("other bytes")
		}
	}
	get(0, 10)
	f.log()
	get(10, 10) // straight to where the first was
	if l := f.log(); len(l) != 0 {
		t.Errorf("the registry was asked again: %q", l)
	}
	f.mu.Lock()
	expired = true
	f.mu.Unlock()
	get(20, 10)
	if l := f.log(); len(l) != 1 {
		t.Errorf("the registry was asked %q for an expired link", l)
	}
	want := []string{"bytes=0-9", "bytes=10-19", "bytes=20-29", "bytes=20-29"}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Error(diff)
	}
}

// TestDistrustedLocation has a registry send first to a host with wrong bytes, then to another: when that is told of, the registry is asked anew,
// though a fetch from the first still goes on.
func TestDistrustedLocation(t *testing.T) {
	content := blobtest.Random(1000)
	f := newFake(t)
	d := f.addBlob(content)
	halfway, goOn := make(chan struct{}), make(chan struct{})
	bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") == "bytes=500-599" {
			close(halfway)
			<-goOn
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(make([]byte, 1000)))
	}))
	defer bad.Close()
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	defer good.Close()
	var sent atomic.Int64
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		to := bad.URL
		if sent.Add(1) > 1 {
			to = good.URL
		}
		http.Redirect(w, r, to, http.StatusTemporaryRedirect)
		return true
	}
	repo := open(t, f.host(), ":v1", authn.AuthConfig{})
	src := repo.Blob(d)
	for range 2 {
		if b, err := read(t, src, 0, 10); err != nil || !bytes.Equal(b, make([]byte, 10)) {
			t.Fatalf("%q, %v", b, err)
		}
	}
	done := make(chan error)
	go func() {
		rc, err := src.Fetch(t.Context(), 500, 100)
		if err == nil {
			err = rc.Close()
		}
		done <- err
	}()
	<-halfway
	repo.Distrust(d.Digest)
	close(goOn)
	if err := <-done; err != nil {
		t.Error(err)
	}
	for range 2 {
		if b, err := read(t, src, 0, 10); err != nil || !bytes.Equal(b, content[:10]) {
			t.Errorf("%q, %v", b, err)
		}
	}
	if n := sent.Load(); n != 2 {
		t.Errorf("the registry was asked %d times, not twice", n)
	}
}

func TestSecretsStayOutOfErrors(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, "{\"errors\":[{\"code\":\"X\\u001b[31m\",\"message\":\"bad\\nthing\"}]}")
	}))
	defer other.Close()
	f := newFake(t)
	d := f.addBlob([]byte("abc"))
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, other.URL+"/store?signature=hush", http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	src := open(t, f.host(), ":v1", authn.AuthConfig{}).Blob(d)
	_, err := read(t, src, 0, 3)
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, ErrNotFound) {
		t.Fatalf("error %v", err)
	}
	if s := err.Error(); strings.Contains(s, "hush") || strings.ContainsAny(s, "\n\x1b") || !strings.Contains(s, "/store") {
		t.Errorf("error %q", s)
	}
	other.Close()
	if _, err = read(t, src, 0, 3); !errors.Is(err, ErrUnreachable) || strings.Contains(err.Error(), "hush") {
		t.Errorf("error %v", err)
	}
}

func TestContentRange(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want string
	}{
		{"bytes 0-9/10", "0 9 10 true"},
		{"bytes 5-9/*", "5 9 -1 true"},
		{"bytes */10", "0 0 0 false"},
		{"bytes 0-9", "0 0 0 false"},
		{"bytes -1-9/10", "0 0 0 false"},
		{"bytes 0-99999999999999999999/10", "0 9223372036854775807 10 false"},
		{"octets 0-9/10", "0 0 0 false"},
		{"", "0 0 0 false"},
	} {
		a, b, c, ok := contentRange(tt.in)
		if got := fmt.Sprint(a, b, c, ok); got != tt.want && !(strings.HasSuffix(tt.want, "false") && !ok) {
			t.Errorf("%q: %s, want %s", tt.in, got, tt.want)
		}
	}
}
