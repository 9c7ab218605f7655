package registry

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/ref"
)

const fuzzSecret = "s3cret-of-the-user"

// wire is a http.RoundTripper over which whatever a test has prepared comes back, one answer for each request, from whichever host. It
// watches over what is sent.
type wire struct {
	t       *testing.T
	answers [][]byte
	home    string   // host of the registry
	plain   bool     // it may be spoken to in plain HTTP
	named   []string // values of headers that name token servers
}

func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && (!w.plain || req.URL.Scheme != "http") {
		w.t.Errorf("%s %s is sent in the open", req.Method, req.URL)
	}
	if req.URL.Host == "" {
		return nil, errors.New("no host in the request's URL") // as http.Transport has it
	}
	var body []byte
	if req.Body != nil {
		var err error
		if body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
		req.Body.Close()
	}
	host := strings.ToLower(req.URL.Host)
	auth := req.Header.Get("Authorization")
	if strings.HasPrefix(auth, "Bearer ") && req.URL.Hostname() != w.homeName() {
		w.t.Errorf("a token is sent to %s", host)
	}
	sent := auth + string(body) + req.URL.String()
	if b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(auth, "Basic ")); err == nil {
		sent += string(b)
	}
	if strings.Contains(sent, fuzzSecret) && host != w.home && !w.isNamed(host) {
		w.t.Errorf("the user's credential is sent to %s", host)
	}
	if len(w.answers) == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	answer := w.answers[0]
	w.answers = w.answers[1:]
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(answer)), req)
	if err != nil {
		return nil, err
	}
	// whom the registry names as its token server, and where that one sends on
	if req.URL.Hostname() == w.homeName() {
		w.named = append(w.named, resp.Header["Www-Authenticate"]...)
	}
	if w.isNamed(host) {
		w.named = append(w.named, resp.Header["Location"]...)
	}
	return resp, nil
}

// isNamed tells whether a host is in what names token servers, however it is quoted there.
func (w *wire) isNamed(host string) bool {
	for _, s := range w.named {
		s = strings.ReplaceAll(s, `\`, "")
		if plain, err := url.PathUnescape(s); err == nil {
			s = plain
		}
		if strings.Contains(strings.ToLower(s), host) {
			return true
		}
	}
	return false
}

func (w *wire) homeName() string { return (&url.URL{Host: w.home}).Hostname() }

// checkError checks that an error can be shown to people.
func checkError(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	s := err.Error()
	if strings.Contains(s, fuzzSecret) {
		t.Errorf("an error tells the user's credential: %q", s)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }) {
		t.Errorf("an error has control characters: %q", s)
	}
}

const (
	pingOK   = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	bearer   = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"https://auth.example/token\",service=\"s\",scope=\"repository:app:pull\"\r\nContent-Length: 0\r\n\r\n"
	basic    = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"r\"\r\nContent-Length: 0\r\n\r\n"
	oneToken = "HTTP/1.1 200 OK\r\nContent-Length: 51\r\n\r\n{\"token\":\"t\",\"expires_in\":300,\"refresh_token\":\"rr\"}"
	manifest = "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\nLink: </v2/x>; rel=\"next\"\r\n\r\n{\"schemaVersion\":2,\"config\":{},\"layers\":[]}"
	moved    = "HTTP/1.1 307 Temporary Redirect\r\nLocation: https://cdn.example/blob?signature=x\r\nContent-Length: 0\r\n\r\n"
	part     = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-4/10\r\nContent-Length: 3\r\n\r\nabc"
	whole    = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789"
	chunked  = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
	limited  = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\n\r\n{\"errors\":[{\"code\":\"TOOMANYREQUESTS\",\"message\":\"slow\\u001b[31m\"}]}"
)

// FuzzAnswers has a registry, its token server and whoever they redirect to answer anything. Credentials go where they belong, plain
// HTTP is spoken with nobody who didn't permit it, manifests are what their digests say, and ranges are as long as was asked for.
func FuzzAnswers(f *testing.F) {
	add := func(plain bool, auth uint8, answers ...string) {
		f.Add([]byte(strings.Join(answers, "\x00")), plain, auth, uint16(2), uint16(3))
	}
	add(false, 0, manifest, whole, part)
	add(false, 1, bearer, oneToken, manifest, moved, whole, moved, part)
	add(false, 2, bearer, oneToken, manifest, bearer, oneToken, whole, part)
	add(true, 1, basic, manifest, moved, moved, moved, whole)
	add(true, 3, basic, limited, manifest, chunked)
	add(true, 1, strings.Replace(bearer, "https://auth.example", "http://localhost:5000", 1), oneToken, manifest, part)
	add(false, 1, strings.Replace(moved, "https://cdn.example", "http://registry.example", 1), pingOK)
	add(false, 1, strings.Replace(moved, "cdn", "registry", 1), pingOK, strings.Replace(bearer, "auth", "evil", 1), manifest)
	f.Fuzz(func(t *testing.T, answers []byte, plain bool, auth uint8, off, n uint16) {
		w := &wire{t: t, answers: bytes.Split(answers, []byte{0}), home: "registry.example", plain: plain}
		if plain {
			w.home = "localhost:5000"
		}
		name, err := ref.Parse(w.home + "/app:v1")
		if err != nil {
			t.Fatal(err)
		}
		o := Options{Transport: w, Retry: blob.Policy{Attempts: 2, MinWait: 1, MaxWait: 1, Patience: 1, Idle: time.Minute}}
		switch auth % 4 {
		case 1:
			o.Auth = authn.AuthConfig{Username: "user", Password: fuzzSecret}
		case 2:
			o.Auth = authn.AuthConfig{IdentityToken: fuzzSecret}
		case 3:
			o.Auth = authn.AuthConfig{RegistryToken: fuzzSecret}
		}
		repo, err := Open(name, o)
		if err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		d, err := repo.Resolve(ctx)
		checkError(t, err)
		if err == nil {
			b, err := repo.Manifest(ctx, d)
			if err != nil || int64(len(b)) != d.Size || blob.Verify(b, d.Digest) != nil {
				t.Errorf("%+v was resolved, of %d bytes, %v", d, len(b), err)
			}
			if kind, err := ref.Kind(b, d.MediaType); err != nil || kind != d.MediaType {
				t.Errorf("a manifest resolved as %s is %s, %v", d.MediaType, kind, err)
			}
		}
		// {} is the config that seeds and mutations can send
		config := v1.Descriptor{MediaType: types.OCIConfigJSON, Size: 2, Digest: v1.Hash{Algorithm: "sha256", Hex: "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}}
		b, err := repo.Manifest(ctx, config)
		checkError(t, err)
		if err == nil && string(b) != "{}" {
			t.Errorf("config %q", b)
		}
		config.Size = 10
		src := repo.Blob(config)
		for range 2 { // the second time perhaps where the first was redirected to
			checkError(t, fetch(t, ctx, src, int64(off%10), int64(n)%(10-int64(off%10))+1))
		}
	})
}

// fetch reads a range of a blob of ten bytes.
func fetch(t *testing.T, ctx context.Context, src blob.Source, off, n int64) error {
	r, err := src.Fetch(ctx, off, n)
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if int64(len(b)) > n || err == nil && int64(len(b)) != n {
		t.Errorf("%d bytes for %d, %v", len(b), n, err)
	}
	return err
}

// FuzzContentRange reads values of that header.
func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-0/1", "bytes 1-2/*", "bytes 9223372036854775807-0/9223372036854775808", "bytes -1-2/3", "bytes +1-2/3", "bytes */5", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, total, ok := contentRange(s)
		if !ok {
			return
		}
		if first < 0 || last < 0 || total < -1 {
			t.Fatalf("%q is %d-%d/%d", s, first, last, total)
		}
		of := "*"
		if total >= 0 {
			of = fmt.Sprint(total)
		}
		again := fmt.Sprintf("bytes %d-%d/%s", first, last, of)
		if f, l, n, ok := contentRange(again); !ok || f != first || l != last || n != total {
			t.Errorf("%q is %d-%d/%d, and %q is not", s, first, last, total, again)
		}
	})
}
