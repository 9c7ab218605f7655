package lazy_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/registry"
)

// TestMutationsRegistry mutates every answer of a registry as it is on the wire, status and headers included: to the first request, of
// the token server, to requests for documents, and to those for layers, whole and in ranges, which are redirected.
func TestMutationsRegistry(t *testing.T) {
	raw := tinyLayers(t)
	f := sign(t, forms()["gzip"](t, raw[0]), forms()["estargz"](t, raw[1]), forms()["zstd:chunked"](t, raw[2]))
	good := readTruth(t, f.repo())
	run := func(ctx context.Context, c *lazy.Cache, wire *wire) (seen, error) {
		n, err := ref.Parse("localhost:5000/tiny:1")
		if err != nil {
			return seen{}, err
		}
		transport := registry.NewTransport()
		transport.DialContext = wire.dial // whatever address an answer names
		defer transport.CloseIdleConnections()
		policy := blob.Policy{Attempts: 2, MinWait: 1, MaxWait: 1, Idle: time.Second, Patience: time.Millisecond}
		r, err := registry.Open(n, registry.Options{Transport: transport, Retry: policy, Auth: authn.AuthConfig{Username: "a", Password: "b"}})
		if err != nil {
			return seen{}, err
		}
		return opening{repo: retried{r, policy}, lazy: true}.run(ctx, c)
	}
	answers := recorded{m: make(map[string][]byte)}
	w := &worker{t.TempDir()}
	_, err := w.withCache(func(c *lazy.Cache) (outcome, error) {
		s, err := run(t.Context(), c, &wire{serve: answers.keep(serving(f))})
		if err == nil && s.outcome != right {
			err = fmt.Errorf("nothing mutated: %w", s.why)
		}
		return s.outcome, errors.Join(err, good.is(s))
	})
	if err != nil {
		t.Fatal(err)
	}
	var inputs []input
	for _, request := range slices.Sorted(maps.Keys(answers.m)) {
		inputs = append(inputs, input{shorten(request), answers.m[request], 12, func(ctx context.Context, w *worker, m []byte) (outcome, error) {
			serve := func(r *http.Request) []byte {
				switch k := requested(r); {
				case k == request:
					return m
				case answers.m[k] != nil:
					return answers.m[k]
				}
				return answer(serving(f), r)
			}
			return w.withCache(func(c *lazy.Cache) (outcome, error) {
				s, err := run(ctx, c, &wire{serve: serve})
				if err := errors.Join(err, good.is(s), keptNothing(c, s.outcome)); err != nil {
					return s.outcome, err
				}
				return s.outcome, good.holds(ctx, c)
			})
		}})
	}
	tryAll(t, inputs)
}

// retried is a registry whose blobs are retried, as the daemon has it.
type retried struct {
	*registry.Repo
	policy blob.Policy
}

func (r retried) Blob(d v1.Descriptor) blob.Source { return blob.Retry(r.Repo.Blob(d), r.policy) }

// wire answers requests, each on a connection of its own, with the bytes that serve gives.
type wire struct{ serve func(*http.Request) []byte }

func (w *wire) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		r, err := http.ReadRequest(bufio.NewReader(server))
		if err != nil {
			return // it isn't HTTP
		}
		_, _ = server.Write(w.serve(r)) // who has hung up has read enough
	}()
	return client, nil
}

// requested names a request.
func requested(r *http.Request) string {
	return strings.TrimSpace(r.Method + " " + r.Host + r.URL.Path + " " + r.Header.Get("Range"))
}

// answer is what a handler answers, as it is on the wire.
func answer(h http.Handler, r *http.Request) []byte {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	resp := rec.Result()
	resp.Header.Set("Connection", "close")
	resp.ContentLength = int64(rec.Body.Len())
	var b bytes.Buffer
	_ = resp.Write(&b) // a buffer never fails
	return b.Bytes()
}

// recorded keeps answers.
type recorded struct {
	mu sync.Mutex
	m  map[string][]byte
}

func (a *recorded) keep(h http.Handler) func(*http.Request) []byte {
	return func(r *http.Request) []byte {
		b := answer(h, r)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.m[requested(r)] = b
		return b
	}
}

// serving is a registry with an image, which wants a token and has its blobs elsewhere.
func serving(p imageParts) http.Handler {
	const token = "abcdef"
	repo := p.repo()
	mux := http.NewServeMux()
	auth := func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer "+token {
				w.Header().Set("WWW-Authenticate", `Bearer realm="http://localhost:5000/token",service="tiny",scope="repository:tiny:pull"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h(w, r)
		}
	}
	digest := func(r *http.Request) v1.Hash {
		h, err := v1.NewHash(r.PathValue("digest"))
		if err != nil { // it is the tag
			return repo.root.Digest
		}
		return h
	}
	mux.HandleFunc("/v2/", auth(func(http.ResponseWriter, *http.Request) {}))
	mux.HandleFunc("/token", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"token":"`+token+`","expires_in":300}`)
	})
	mux.HandleFunc("/v2/tiny/manifests/{digest}", auth(func(w http.ResponseWriter, r *http.Request) {
		b, ok := repo.blobs[digest(r)]
		if !ok {
			http.NotFound(w, r)
			return
		}
		mt := "application/vnd.oci.image.manifest.v1+json"
		if digest(r) == repo.root.Digest {
			mt = string(repo.root.MediaType)
		}
		w.Header().Set("Content-Type", mt)
		w.Header().Set("Docker-Content-Digest", digest(r).String())
		_, _ = w.Write(b)
	}))
	mux.HandleFunc("/v2/tiny/blobs/{digest}", auth(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.1:5001/blobs/"+digest(r).String()+"?signature=1", http.StatusTemporaryRedirect)
	}))
	mux.HandleFunc("/blobs/{digest}", func(w http.ResponseWriter, r *http.Request) {
		b, ok := repo.blobs[digest(r)]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	})
	return mux
}
