package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/cmd/internal/metrics"
	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/store"
)

// measure has all that goes over a transport counted.
func (s *server) measure(t http.RoundTripper, version string) {
	s.metrics = metrics.New(version, s.state)
	s.transport = s.metrics.Transport(t)
}

// state is what a scrape is told.
func (s *server) state() metrics.State {
	st := metrics.State{Images: map[string]int{string(store.Lazy): 0, string(store.Sealed): 0, string(store.Damaged): 0, "filling": 0}, CacheBytes: -1, Evicted: s.cache.Evicted()}
	if used, size, err := s.st.Space(); err != nil {
		s.log.Warn("measuring the cache", "err", err)
	} else {
		st.CacheBytes, st.BudgetBytes = used, size
	}
	infos, err := s.st.Images()
	if err != nil {
		s.log.Warn("listing images", "err", err)
	}
	for _, i := range infos {
		state := i.State
		if im := s.cache.Loaded(i.Key); im != nil {
			if state = im.State(); state != store.Sealed {
				st.Present += im.Present()
				if state = store.Lazy; im.Filling() {
					state = "filling"
				}
			}
		}
		if state == store.Sealed {
			st.Present += i.Size
		}
		st.Images[string(state)]++
	}
	s.mu.Lock()
	for _, l := range s.leases {
		st.Leases += len(l)
	}
	st.Openings = len(s.opening)
	s.mu.Unlock()
	return st
}

// seeing are the routes that may be asked for over a network, too.
func (s *server) seeing(mux *http.ServeMux) {
	mux.Handle("GET /metrics", s.metrics.Handler())
	mux.HandleFunc("GET /healthz", s.health)
}

// pprofRoutes are what profilers ask for. Profiles name functions, not data.
func pprofRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
}

// Health is the answer to /healthz.
type Health struct {
	OK       bool     `json:"ok"`
	PID      int      `json:"pid"`
	Problems []string `json:"problems"` // what is wrong
}

func (s *server) health(w http.ResponseWriter, r *http.Request) {
	h := Health{OK: true, PID: os.Getpid(), Problems: []string{}}
	if err := s.st.Probe(); err != nil {
		h.OK, h.Problems = false, append(h.Problems, err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	if !h.OK {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	json.NewEncoder(w).Encode(h)
}

// openRepo is OpenRepo by the daemon's own transport, with what is fetched counted.
func (s *server) openRepo(ctx context.Context, r ref.Ref, o RepoOptions) (lazy.Repo, error) {
	o.Transport, o.Stalls, o.Circuits, o.Credentials = s.transport, s.stalls, &s.circuits, s.keyring.credentials
	o.Ignored = func(text string) { s.warnings.warn(s.log, text) }
	from, err := OpenRepo(ctx, r, o)
	if err != nil {
		return nil, err
	}
	switch r.Transport {
	case ref.OCI:
		return folder{from, s.metrics}, nil
	case ref.Registry:
		s.metrics.Registry(r.Name.Context().RegistryStr())
	}
	return from, nil
}

// folder is an OCI layout of which what is read is counted.
type folder struct {
	lazy.Repo
	m *metrics.Metrics
}

func (f folder) Blob(d v1.Descriptor) blob.Source { return f.m.Source(f.Repo.Blob(d)) }

// openingOf gives the context of an opening: what it fetches is counted for the image that opened names in the end, and for none
// if it is called with "", which does nothing afterwards.
func (s *server) openingOf(ctx context.Context) (_ context.Context, opened func(store.Key)) {
	id := fmt.Sprintf("opening %d", s.openings.Add(1)) // no key
	ended := false
	return blob.WithPurpose(ctx, blob.Purpose{Reason: blob.ForOpening, Image: id}), func(k store.Key) {
		switch {
		case ended:
		case k == "":
			s.metrics.Forget(id)
		default:
			s.metrics.Became(id, string(k))
		}
		ended = true
	}
}

// await is im.Need, with the wait counted. Where the cache can't be written it gives bytes.
func (s *server) await(ctx context.Context, im *lazy.Image, req NeedRequest) (b []byte, err error) {
	start, size := im.Content(req.Off)
	w := s.metrics.Wait(string(im.Info().Key), start, size, req.N)
	err = im.Need(ctx, req.Off, req.N)
	if errors.Is(err, store.ErrUnwritable) {
		if b, err = im.Read(ctx, req.Off, req.N); err == nil {
			s.metrics.Uncached()
		}
	}
	if err != nil && ctx.Err() == context.Canceled {
		w.Done(context.Canceled)
	} else {
		w.Done(err)
	}
	return b, err
}

// why answers what an image's readers waited for.
func (s *server) why(w http.ResponseWriter, r *http.Request) {
	key := store.Key(r.PathValue("key"))
	if _, err := s.cache.Image(r.Context(), key); err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(s.metrics.Why(string(key)))
}

// logOf is for lines about an image.
func (s *server) logOf(k store.Key) *slog.Logger {
	if im := s.cache.Loaded(k); im != nil {
		return s.log.With("image", k, "ref", im.Info().Ref)
	}
	return s.log.With("image", k)
}
