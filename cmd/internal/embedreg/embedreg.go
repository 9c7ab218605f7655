// Package embedreg is a small registry over a folder, for tests, benchmarks and machines without one: manifests, tags,
// blobs with byte ranges, and uploads by the OCI distribution specification (v1.1), for anyone who can reach it. It
// asks for no credentials, lists no referrers and collects no garbage.
//
// What it was given is on disk before it answers, under these names; another start over the folder serves the same.
//
//	blobs/ALGORITHM/HEX                            blobs and the bytes of manifests, shared by all repositories
//	repositories/NAME/_manifests/ALGORITHM/HEX     a manifest's media type
//	repositories/NAME/_tags/TAG                    a manifest's digest
//	uploads/ID                                     what is being uploaded; gone at the next start
//
// GET /_pex/stats answers with Stats in JSON.
package embedreg

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// StatsPath is where Stats are served.
const StatsPath = "/_pex/stats"

// Registry is the registry; it is a http.Handler. It is safe for concurrent use.
type Registry struct {
	dir  string
	log  *slog.Logger // or nil
	lock *os.File     // held by flock until Close

	requests, ranges, sent, received atomic.Int64

	mu      sync.Mutex
	uploads map[string]bool // by id: whether a request is writing to it
}

// Stats counts since the start.
type Stats struct {
	Requests int64 `json:"requests"` // all but those for Stats
	Ranges   int64 `json:"ranges"`   // those for a part of a blob
	Sent     int64 `json:"sent"`     // bytes of bodies
	Received int64 `json:"received"`
}

// Stats gives the counts so far.
func (r *Registry) Stats() Stats {
	return Stats{r.requests.Load(), r.ranges.Load(), r.sent.Load(), r.received.Load()}
}

// Open makes a registry over dir, which it creates if need be and holds until Close: only one can. It logs requests to
// log, unless that is nil.
func Open(dir string, log *slog.Logger) (*Registry, error) {
	for _, sub := range []string{"blobs", "repositories", "uploads"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o777); err != nil {
			return nil, fmt.Errorf("opening registry: %w", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		return nil, fmt.Errorf("opening registry: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("opening registry: folder %s is in use: %w", dir, err)
	}
	r := &Registry{dir: dir, log: log, lock: lock, uploads: map[string]bool{}}
	old, err := os.ReadDir(r.path("uploads"))
	for _, e := range old {
		err = errors.Join(err, os.Remove(r.path("uploads", e.Name())))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening registry: %w", err), lock.Close())
	}
	return r, nil
}

// Close lets go of the folder. The caller has ended all requests.
func (r *Registry) Close() error { return r.lock.Close() }

func (r *Registry) path(elem ...string) string {
	return filepath.Join(append([]string{r.dir}, elem...)...)
}

// Serve serves r on l until ctx ends, then gives requests under way two seconds to finish.
func (r *Registry) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: r, ReadHeaderTimeout: 30 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving registry: %w", err)
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if srv.Shutdown(end) != nil {
		_ = srv.Close() // cuts what is left
	}
	<-served
	return nil
}

// apiError is an answer that isn't what was asked for (distribution specification, "Error Codes").
type apiError struct {
	status  int
	code    string
	message string
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

func fail(status int, code, format string, args ...any) error {
	return &apiError{status, code, fmt.Sprintf(format, args...)}
}

func (r *Registry) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	if req.URL.Path == StatsPath {
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(r.Stats()) // a client that is gone needs no answer
		return
	}
	r.requests.Add(1)
	w := &countingWriter{ResponseWriter: rw, n: &r.sent}
	req.Body = &countingBody{req.Body, &r.received}
	start := time.Now()
	err := r.serve(w, req)
	if err != nil {
		var e *apiError
		if !errors.As(err, &e) {
			e = &apiError{http.StatusInternalServerError, "UNKNOWN", "the registry failed"}
		}
		writeError(w, e)
	}
	if r.log != nil {
		r.log.LogAttrs(req.Context(), slog.LevelInfo, "request", slog.String("method", req.Method), slog.String("path", req.URL.Path),
			slog.String("range", req.Header.Get("Range")), slog.Int("status", w.status), slog.Duration("took", time.Since(start)), slog.Any("error", err))
	}
}

func writeError(w http.ResponseWriter, e *apiError) {
	type item struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	w.Header().Del("Content-Length")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.status)
	_ = json.NewEncoder(w).Encode(map[string][]item{"errors": {{e.code, e.message}}}) // as above
}

// countingWriter counts the bytes of a body and remembers the status.
type countingWriter struct {
	http.ResponseWriter
	n      *atomic.Int64
	status int
}

func (w *countingWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.n.Add(int64(n))
	return n, err
}

// ReadFrom keeps the way open for sendfile(2).
func (w *countingWriter) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(w.ResponseWriter, r)
	w.n.Add(n)
	return n, err
}

type countingBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

// Names as the distribution specification has them. None begins with "_", so none meets the registry's own folders.
var (
	nameRE = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagRE  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// serve finds what is asked for by the end of the path: a repository's name may hold any of these words too.
func (r *Registry) serve(w http.ResponseWriter, req *http.Request) error {
	path, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if !ok && req.URL.Path != "/v2" {
		return fail(http.StatusNotFound, "UNSUPPORTED", "this is a registry, its API is at /v2/")
	}
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if path == "" || !ok {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	parts := strings.Split(path, "/")
	n := len(parts)
	last := parts[n-1]
	at := func(i int, word string) bool { return n > i && parts[n-i] == word }
	name := func(rest int) string { return strings.Join(parts[:n-rest], "/") }
	switch {
	case at(3, "blobs") && at(2, "uploads"):
		return r.named(name(3), func(repo string) error { return r.serveUpload(w, req, repo, last) })
	case at(2, "blobs") && last == "uploads":
		return r.named(name(2), func(repo string) error { return r.serveUpload(w, req, repo, "") })
	case at(2, "blobs"):
		return r.named(name(2), func(string) error { return r.serveBlob(w, req, last) })
	case at(2, "manifests"):
		return r.named(name(2), func(repo string) error { return r.serveManifest(w, req, repo, last) })
	case at(2, "tags") && last == "list":
		return r.named(name(2), func(repo string) error { return r.serveTags(w, req, repo) })
	}
	return fail(http.StatusNotFound, "UNSUPPORTED", "no such part of the API")
}

func (r *Registry) named(name string, f func(repo string) error) error {
	if len(name) > 255 || !nameRE.MatchString(name) {
		return fail(http.StatusBadRequest, "NAME_INVALID", "%.300q is no name of a repository", name)
	}
	return f(name)
}

func unsupported(req *http.Request) error {
	return fail(http.StatusMethodNotAllowed, "UNSUPPORTED", "%s is not possible here", req.Method)
}
