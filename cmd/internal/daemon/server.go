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
	"slices"
	"sync"
	"time"

	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/profile"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/registry"
	"github.com/pexfs/pex/lazy/store"
)

// Config of a daemon.
type Config struct {
	CacheDir string
	Idle     time.Duration // ends by itself after this long with nothing to do; 0: never
	Log      *slog.Logger
}

type server struct {
	cache     *lazy.Cache
	st        *store.Store
	log       *slog.Logger
	started   time.Time
	ctx       context.Context // of the daemon's life: fillers run on it
	stop      context.CancelFunc
	work      sync.WaitGroup    // requests, fillers, and what these start
	transport http.RoundTripper // shared by all registries: one pool of connections
	found     findings
	keeping   store.Locks[string] // of profiles, by id

	mu       sync.Mutex // guards what follows
	leases   map[store.Key]map[*lease]bool
	removing map[store.Key]bool // nobody gets a lease
	opening  map[*Opening]bool
	busy     int       // requests and fillers under way
	idle     time.Time // since when busy is 0
	ending   bool      // none begins any more
}

type lease struct{ who string }

// gcPercent is how much garbage the daemon has beside what is in use, in percent of that (runtime/debug.SetGCPercent).
const gcPercent = 40

// Run serves until ctx ends, a client stops it, or it has been idle for long enough. The error wraps store.ErrLocked where the
// folder has a daemon already.
func Run(ctx context.Context, c Config) error {
	st, err := store.Open(c.CacheDir)
	if err != nil {
		return err
	}
	if err := st.Lock(); err != nil {
		return err
	}
	defer st.Close()
	sock, err := socketPath(st.Dir())
	if err != nil {
		return err
	}
	// the lock is ours, so whoever made this socket is gone
	if err := os.Remove(sock); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", sock)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	if err := os.Chmod(sock, 0o600); err != nil {
		return errors.Join(err, l.Close())
	}
	if os.Getenv("GOGC") == "" { // an opening makes much garbage for a moment: it is cheaper to collect than to have
		defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &server{
		cache: lazy.NewCache(st, lazy.Options{Log: c.Log}), st: st, log: c.Log, started: time.Now(), transport: registry.NewTransport(), ctx: ctx, stop: cancel,
		leases: make(map[store.Key]map[*lease]bool), removing: make(map[store.Key]bool), opening: make(map[*Opening]bool), idle: time.Now(),
	}
	hs := &http.Server{Handler: s.routes(), BaseContext: func(net.Listener) context.Context { return ctx }, ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug)}
	s.work.Go(func() {
		<-ctx.Done()
		hs.Close() // ends leases and waits: their owners ask again
	})
	if c.Idle > 0 {
		s.work.Go(func() { s.endIdle(c.Idle) })
	}
	c.Log.Info("daemon serves", "cache", st.Dir(), "pid", os.Getpid())
	err = hs.Serve(l)
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
	mux.HandleFunc("GET /v1/ping", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("POST /v1/open", s.open)
	mux.HandleFunc("GET /v1/images/{key}/lease", s.lease)
	mux.HandleFunc("POST /v1/images/{key}/need", s.need)
	mux.HandleFunc("GET /v1/images/{key}/wait", s.wait)
	mux.HandleFunc("POST /v1/images/{key}/fsck", s.fsck)
	mux.HandleFunc("POST /v1/images/{key}/replay", s.replay)
	mux.HandleFunc("POST /v1/images/{key}/reads", s.reads)
	mux.HandleFunc("DELETE /v1/images/{key}", s.remove)
	mux.HandleFunc("GET /v1/profiles", s.listProfiles)
	mux.HandleFunc("PUT /v1/profiles", s.putProfile)
	mux.HandleFunc("GET /v1/profiles/{id}", s.getProfile)
	mux.HandleFunc("DELETE /v1/profiles/{id}", s.removeProfile)
	mux.HandleFunc("GET /v1/status", s.status)
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
		mux.ServeHTTP(w, r)
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

func (s *server) open(w http.ResponseWriter, r *http.Request) {
	var req OpenRequest
	if err := readBody(r, &req); err != nil {
		fail(w, err)
		return
	}
	out := newLines(w)
	defer out.end()
	o, err := s.openImage(r.Context(), req, out)
	if err != nil {
		s.log.Warn("open", "ref", req.Ref, "err", err)
		out.send(Message{Error: toError(err)})
		return
	}
	out.send(Message{Opened: o})
}

func (s *server) openImage(ctx context.Context, req OpenRequest, out *lines) (*Opened, error) {
	name, err := ref.Parse(req.Ref)
	if err != nil {
		return nil, err
	}
	p := ref.DefaultPlatform()
	if req.Platform != "" {
		if p, err = ref.ParsePlatform(req.Platform); err != nil {
			return nil, err
		}
	}
	var repo lazy.Repo
	if !req.Offline {
		if repo, err = OpenRepo(ctx, name, req.Auth, req.Insecure, s.transport); err != nil {
			return nil, err
		}
		if _, err := s.st.Ref(name.String(), p.String()); err != nil { // all its layers will be asked for
			warm(s.ctx, repo)
		}
	}
	made := false
	cold := func(manifest string) func(context.Context) *profile.Profile {
		made = true
		if req.Profile == nil {
			return nil
		}
		s.find(repo, manifest, *req.Profile)
		return func(ctx context.Context) *profile.Profile { return s.first(ctx, manifest, *req.Profile) }
	}
	op := &Opening{Ref: name.String()}
	s.mu.Lock()
	s.opening[op] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.opening, op)
		s.mu.Unlock()
	}()
	var last time.Time
	o, err := s.cache.Open(ctx, name, repo, lazy.OpenOptions{Cold: cold, Platform: p, Strict: req.Strict, Verify: req.Verify, Offline: req.Offline, MaxSize: req.MaxSize, MaxEntries: req.MaxEntries, Progress: func(e lazy.Event) {
		s.mu.Lock()
		same := op.Event.Stage == e.Stage && time.Since(last) < 100*time.Millisecond
		op.Event = e
		if !same {
			last = time.Now()
		}
		s.mu.Unlock()
		if !same || e.Stage == "warning" {
			out.send(Message{Event: &e})
		}
	}})
	if made { // what that took is of no more use, and a filler needs little
		s.work.Go(debug.FreeOSMemory)
	}
	if err != nil {
		return nil, err
	}
	if req.Fill && req.Profile == nil { // else it begins with the lease, behind what a profile names
		s.fill(o.Image)
	}
	return &Opened{Key: o.Image.Info().Key, Ref: name.String(), Manifest: o.Manifest, Config: o.Config, Dir: o.Image.Dir(), State: o.Image.State()}, nil
}

// fill starts the filler, which runs until the image is sealed or the daemon ends.
func (s *server) fill(im *lazy.Image) {
	if im.State() == store.Sealed || im.Filling() {
		return
	}
	leave, ok := s.enter()
	if !ok {
		return
	}
	go func() {
		defer leave()
		if err := im.Fill(s.ctx); err != nil && s.ctx.Err() == nil && !errors.Is(err, lazy.ErrReopened) {
			s.log.Error("filling image", "image", im.Info().Key, "err", err)
		}
	}()
}

// image gives an image of the cache, with somewhere to fetch from.
func (s *server) image(ctx context.Context, r *http.Request) (*lazy.Image, error) {
	im, err := s.cache.Image(ctx, store.Key(r.PathValue("key")))
	if err != nil || im.HasRepo() || im.State() == store.Sealed {
		return im, err
	}
	name, err := ref.Parse(im.Info().Ref)
	if err != nil {
		return nil, err
	}
	repo, err := OpenRepo(ctx, name, nil, false, s.transport)
	if err != nil {
		return nil, err
	}
	im.SetRepo(repo)
	return im, nil
}

func (s *server) lease(w http.ResponseWriter, r *http.Request) {
	key := store.Key(r.PathValue("key"))
	l := &lease{who: r.URL.Query().Get("who")}
	if !s.addLease(key, l) {
		fail(w, fmt.Errorf("%w: image %.12s is being removed", store.ErrNotCached, key))
		return
	}
	defer func() {
		s.mu.Lock()
		delete(s.leases[key], l)
		if len(s.leases[key]) == 0 {
			delete(s.leases, key)
		}
		s.mu.Unlock()
	}()
	im, err := s.image(r.Context(), r)
	if err != nil {
		fail(w, err)
		return
	}
	if r.URL.Query().Get("fill") != "" {
		s.fill(im)
	}
	w.WriteHeader(http.StatusOK)
	http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

// addLease refuses a lease of an image that is being removed.
func (s *server) addLease(key store.Key, l *lease) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removing[key] {
		return false
	}
	if s.leases[key] == nil {
		s.leases[key] = make(map[*lease]bool)
	}
	s.leases[key][l] = true
	return true
}

func (s *server) need(w http.ResponseWriter, r *http.Request) {
	var req NeedRequest
	err := readBody(r, &req)
	if err == nil {
		var im *lazy.Image
		for range 2 { // a check that finds damage opens the image anew
			if im, err = s.image(r.Context(), r); err == nil {
				err = im.Need(r.Context(), req.Off, req.N)
			}
			if !errors.Is(err, lazy.ErrReopened) {
				break
			}
		}
	}
	if err != nil {
		if r.Context().Err() == nil {
			s.log.Warn("read fails", "image", r.PathValue("key"), "off", req.Off, "n", req.N, "err", err)
		}
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) wait(w http.ResponseWriter, r *http.Request) {
	im, err := s.image(r.Context(), r)
	if err != nil {
		fail(w, err)
		return
	}
	im.ResetErr() // it may be mended now
	out := newLines(w)
	defer out.end()
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for {
		if im, err = s.image(r.Context(), r); err != nil { // another one, after a check that found damage
			out.send(Message{Error: toError(err)})
			return
		}
		sealed := im.State() == store.Sealed
		if !sealed && !im.Filling() {
			if err := im.Err(); err != nil {
				out.send(Message{Error: toError(err)})
				return
			}
			s.fill(im)
		}
		st := s.imageStatus(im.Info(), nil)
		if out.send(Message{Image: &st}) != nil || sealed {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-im.Sealed():
		case <-t.C:
		}
	}
}

func (s *server) fsck(w http.ResponseWriter, r *http.Request) {
	var req FsckRequest
	if err := readBody(r, &req); err != nil {
		fail(w, err)
		return
	}
	repo := func(info store.Info) (lazy.Repo, error) {
		name, err := ref.Parse(info.Ref)
		if err != nil {
			return nil, err
		}
		return OpenRepo(r.Context(), name, req.Auth, false, s.transport)
	}
	key := store.Key(r.PathValue("key"))
	out := newLines(w)
	defer out.end()
	var last time.Time
	rep, err := s.cache.Fsck(r.Context(), key, repo, req.Heal, func(e lazy.Event) {
		if time.Since(last) > 100*time.Millisecond {
			last = time.Now()
			out.send(Message{Event: &e})
		}
	})
	if !rep.None() {
		s.log.Warn("image is damaged", "image", key, "blocks", rep.Bad, "first", rep.Offsets, "tree", rep.Tree, "map", rep.Map, "root", rep.Root,
			"files", rep.Files, "healed", rep.Healed, "err", err)
	}
	if err == nil && rep.Healed && rep.Files == "" {
		var im *lazy.Image
		if im, err = s.cache.Image(r.Context(), key); err == nil {
			s.fill(im)
		}
	}
	if err != nil {
		out.send(Message{Fsck: &rep, Error: toError(err)})
		return
	}
	out.send(Message{Fsck: &rep})
}

func (s *server) remove(w http.ResponseWriter, r *http.Request) {
	key := store.Key(r.PathValue("key"))
	err := s.removal(key)
	if err == nil {
		err = s.cache.Remove(r.Context(), key)
		s.mu.Lock()
		delete(s.removing, key)
		s.mu.Unlock()
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// removal begins the removal of an image that nobody uses.
func (s *server) removal(key store.Key) error {
	if im := s.cache.Loaded(key); im != nil && im.Filling() {
		return fmt.Errorf("image %.12s is %w: it is being filled", key, errBusy)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.leases[key] {
		return fmt.Errorf("image %.12s is %w: %s", key, errBusy, l.who)
	}
	if s.removing[key] {
		return fmt.Errorf("%w: image %.12s is being removed", store.ErrNotCached, key)
	}
	s.removing[key] = true
	return nil
}

func (s *server) imageStatus(info store.Info, refs []store.Ref) ImageStatus {
	im := s.cache.Loaded(info.Key)
	if im != nil {
		info = im.Info()
	}
	st := ImageStatus{
		Key: info.Key, Manifest: info.Manifest, State: info.State, Size: info.Size, Inodes: info.Inodes, Root: info.Root,
		Created: info.Created, Layers: make([]LayerStatus, len(info.Layers)), Refs: []string{}, Users: []string{},
	}
	for i, l := range info.Layers {
		st.Layers[i].Layer = l
	}
	if st.State == store.Sealed {
		st.Present = st.Size
	}
	if im != nil {
		st.State, st.Present, st.Fetched, st.Filling, st.Replaying = im.State(), im.Present(), im.Fetched(), im.Filling(), im.Replaying()
		for i, p := range im.Layers() {
			st.Layers[i].Visible, st.Layers[i].Present = p.Visible, p.Present
		}
		if st.State == store.Sealed {
			st.Root = im.Root()
		} else if err := im.Err(); err != nil {
			st.Error = err.Error()
		}
	}
	s.mu.Lock()
	for l := range s.leases[info.Key] {
		st.Users = append(st.Users, l.who)
	}
	s.mu.Unlock()
	slices.Sort(st.Users)
	for _, r := range refs {
		if rec, err := s.st.Record(r.Manifest); err == nil && rec.Image == info.Key {
			st.Refs = append(st.Refs, r.Ref)
		}
	}
	slices.Sort(st.Refs)
	return st
}

func (s *server) status(w http.ResponseWriter, r *http.Request) {
	infos, err := s.st.Images()
	if err != nil {
		fail(w, err)
		return
	}
	refs, err := s.st.Refs()
	if err != nil {
		fail(w, err)
		return
	}
	st := Status{PID: os.Getpid(), Cache: s.st.Dir(), Started: s.started, Opening: []Opening{}, Images: []ImageStatus{}}
	s.mu.Lock()
	for o := range s.opening {
		st.Opening = append(st.Opening, *o)
	}
	s.mu.Unlock()
	for _, i := range infos {
		// an image that isn't loaded is opened for its count of what is present
		var err error
		if i.State == store.Lazy {
			if _, err = s.cache.Image(r.Context(), i.Key); err != nil {
				s.log.Warn("status", "image", i.Key, "err", err)
			}
		}
		im := s.imageStatus(i, refs)
		if errors.Is(err, store.ErrDamaged) {
			im.State, im.Error = store.Damaged, err.Error()
		}
		st.Images = append(st.Images, im)
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(st)
}
