package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/pexfs/pex/cmd/internal/confine"
	"github.com/pexfs/pex/cmd/internal/metrics"
	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/profile"
	"github.com/pexfs/pex/lazy/registry"
	"github.com/pexfs/pex/lazy/store"
)

// Config of a daemon.
type Config struct {
	CacheDir string
	// CacheSize bounds what the cache takes on disk: a number of bytes as size.Bytes reads it, or "auto". Empty: see cacheSize.
	CacheSize string
	Idle      time.Duration // ends by itself after this long with nothing to do; 0: never
	Log       *slog.Logger
	LogFile   string // that Log writes to, which it may replace; "": none
	User      string // who a daemon of root's becomes: see becoming
	Free      bool   // it keeps all that its user may do
	Metrics   string // TCP address where metrics are served beside the socket; "": nowhere else
	// MetricsAsked says that it is an error if they can't be served there. Else they aren't, as with one address for several daemons.
	MetricsAsked bool
	Version      string         // of this program
	Replace      bool           // end the daemon that the folder has, and take its place
	Sockets      []net.Listener // inherited from systemd; the folder's own socket is made if it isn't among them
}

type server struct {
	cache     *lazy.Cache
	st        *store.Store
	log       *slog.Logger
	started   time.Time
	version   string
	activated bool            // by systemd, who starts the next one
	ctx       context.Context // of the daemon's life: fillers run on it
	stop      context.CancelFunc
	work      sync.WaitGroup    // requests, fillers, and what these start
	transport http.RoundTripper // shared by all registries: one pool of connections
	stalls    *blob.Stalls
	circuits  blob.Circuits
	warnings  warnings // of files that opening reads
	keyring   *keyring
	metrics   *metrics.Metrics
	confined  *confine.State
	openings  atomic.Int64 // begun
	found     findings
	keeping   store.Locks[string] // of profiles, by id

	collecting sync.RWMutex // openings read-lock it: what they have written so far is no garbage

	mu       sync.Mutex // guards what follows
	leases   map[store.Key]map[*lease]bool
	removing map[store.Key]chan struct{} // nobody gets a lease; closed when the removal is over
	refills  map[store.Key]*time.Timer
	opened   map[store.Key]time.Time // images that nobody has leased since
	opening  map[*Opening]bool
	busy     int       // requests and fillers under way
	idle     time.Time // since when busy is 0
	ending   bool      // none begins any more
}

// gcPercent is how much garbage the daemon has beside what is in use, in percent of that (runtime/debug.SetGCPercent).
const gcPercent = 40

// Run serves until ctx ends, a client stops it, or it has been idle for long enough. The error wraps store.ErrLocked where the
// folder has a daemon already.
func Run(ctx context.Context, c Config) error {
	u, err := becoming(c)
	if err != nil {
		return err
	}
	st, err := c.take(ctx, u)
	if err != nil {
		return err
	}
	defer st.Close()
	sock, err := socketPath(st.Dir())
	if err != nil {
		return err
	}
	l, err := listen(sock, c.Sockets, c.Log)
	if err != nil {
		return err
	}
	ml, err := listenMetrics(ctx, c.Metrics)
	if err != nil && !c.MetricsAsked {
		c.Log.Warn("metrics are served on the daemon's socket only", "err", err)
		err = nil
	}
	if err != nil {
		return errors.Join(err, l.Close())
	}
	keys, held, err := c.confine(st.Dir(), sock, u)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	defer keys.close()
	if os.Getenv("GOGC") == "" { // an opening makes much garbage for a moment: it is cheaper to collect than to have
		defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	}
	bound, err := cacheSize(st, c.CacheSize, c.Log)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &server{
		st: st, log: c.Log, started: time.Now(), version: c.Version, activated: len(c.Sockets) > 0, stalls: tellStalls(c.Log), keyring: keys, confined: held, ctx: ctx, stop: cancel,
		leases: make(map[store.Key]map[*lease]bool), removing: make(map[store.Key]chan struct{}), opening: make(map[*Opening]bool), opened: make(map[store.Key]time.Time), idle: time.Now(),
	}
	s.cache = lazy.NewCache(st, lazy.Options{Log: c.Log, Size: bound, Claim: s.claim})
	s.measure(registry.NewTransport(), c.Version)
	s.serveMetrics(ml)
	s.work.Go(s.collect)
	s.work.Go(s.unload)
	hs := &http.Server{Handler: s.routes(), BaseContext: func(net.Listener) context.Context { return ctx }, ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug)}
	s.work.Go(func() {
		<-ctx.Done()
		hs.Close() // ends leases and waits: their owners ask again
	})
	s.work.Go(func() { l.look(ctx, s.stop) })
	if c.Idle > 0 {
		s.work.Go(func() { s.endIdle(c.Idle) })
	}
	c.Log.Info("daemon serves", "cache", st.Dir(), "pid", os.Getpid(), "version", c.Version)
	tell(c.Log, systemd.SdNotifyReady)
	err = hs.Serve(&peers{l, os.Geteuid(), c.Log, s.metrics.Refused})
	tell(c.Log, systemd.SdNotifyStopping)
	cancel()
	s.end()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return errors.Join(err, s.cache.Close())
}

func (s *server) endIdle(after time.Duration) {
	t := time.NewTicker(min(after, time.Second))
	defer t.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
		s.mu.Lock()
		over := s.busy == 0 && time.Since(s.idle) > after
		s.mu.Unlock()
		if over {
			s.log.Info("daemon ends: idle", "for", after)
			s.stop()
		}
	}
}

// enter counts a piece of work, which leave ends, unless the daemon ends.
func (s *server) enter() (leave func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return nil, false
	}
	s.busy++
	s.work.Add(1)
	return func() {
		s.mu.Lock()
		if s.busy--; s.busy == 0 {
			s.idle = time.Now()
		}
		s.mu.Unlock()
		s.work.Done()
	}, true
}

// end waits for all work, whose contexts have ended. None begins any more.
func (s *server) end() {
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	s.work.Wait()
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/ping", s.ping)
	mux.HandleFunc("POST /v1/open", s.open)
	mux.HandleFunc("GET /v1/images/{key}/lease", s.lease)
	mux.HandleFunc("POST /v1/images/{key}/need", s.need)
	mux.HandleFunc("GET /v1/images/{key}/wait", s.wait)
	mux.HandleFunc("POST /v1/images/{key}/fsck", s.fsck)
	mux.HandleFunc("POST /v1/images/{key}/replay", s.replay)
	mux.HandleFunc("POST /v1/images/{key}/reads", s.reads)
	mux.HandleFunc("DELETE /v1/images/{key}", s.remove)
	mux.HandleFunc("PUT /v1/images/{key}/pin", s.pin)
	mux.HandleFunc("DELETE /v1/images/{key}/pin", s.unpin)
	mux.HandleFunc("GET /v1/usage", s.usage)
	mux.HandleFunc("POST /v1/gc", s.gc)
	mux.HandleFunc("GET /v1/profiles", s.listProfiles)
	mux.HandleFunc("PUT /v1/profiles", s.putProfile)
	mux.HandleFunc("GET /v1/profiles/{id}", s.getProfile)
	mux.HandleFunc("DELETE /v1/profiles/{id}", s.removeProfile)
	mux.HandleFunc("GET /v1/status", s.status)
	mux.HandleFunc("GET /v1/images/{key}/why", s.why)
	s.seeing(mux)
	pprofRoutes(mux)
	mux.HandleFunc("POST /v1/stop", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNoContent)
		http.NewResponseController(w).Flush()
		s.stop()
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leave, ok := s.enter()
		if !ok {
			panic(http.ErrAbortHandler) // the client asks the next daemon
		}
		defer leave()
		r.Body = http.MaxBytesReader(w, r.Body, profile.MaxSize)
		s.unlessEnding(mux, w, r)
	})
}

func fail(w http.ResponseWriter, err error) {
	e := toError(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status(e))
	json.NewEncoder(w).Encode(e)
}

func readBody(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("reading request: %w", err)
	}
	return nil
}
