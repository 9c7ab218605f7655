package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/store"
)

type lease struct{ who string }

// Pauses after a filler that gave up, before the next one: the first, doubled each time up to the last.
const (
	refillFirst = 5 * time.Minute
	refillLast  = time.Hour
)

// Pauses before an image that was opened anew under its filler is filled again: none the first time, then reopenFirst, and twice as much and
// reopenFirst each time up to reopenLast.
const (
	reopenFirst = time.Second
	reopenLast  = time.Minute
)

// fill starts the filler, which runs until the image is sealed or the daemon ends. If it gives up on something that may pass, another
// is started after a while, as long as the image is leased.
func (s *server) fill(im *lazy.Image) { s.fillAgain(im, refillFirst) }

// fillAgain starts the filler, and the next one after the given pause.
func (s *server) fillAgain(im *lazy.Image, pause time.Duration) {
	if im.State() == store.Sealed || im.Filling() {
		return
	}
	leave, ok := s.enter()
	if !ok {
		return
	}
	key := im.Info().Key
	go func() {
		defer leave()
		err := im.Fill(s.ctx)
		// it was unloaded just when somebody came, or, perhaps again and again, since its disk fails
		for wait := time.Duration(0); errors.Is(err, lazy.ErrReopened) && s.leased(key); wait = min(2*wait+reopenFirst, reopenLast) {
			select {
			case <-time.After(wait):
			case <-s.ctx.Done():
				return
			}
			if im, err = s.fetchable(s.ctx, key); err == nil {
				err = im.Fill(s.ctx)
			}
		}
		switch {
		case err == nil || s.ctx.Err() != nil || errors.Is(err, lazy.ErrReopened):
		case lazy.MayPass(err):
			s.logOf(key).Error("filling image", "err", err, "again", pause)
			s.refill(key, pause)
		default:
			s.logOf(key).Error("filling image", "err", err)
		}
	}()
}

// refill starts a filler for a leased image after a pause, unless another has been started meanwhile.
func (s *server) refill(key store.Key, pause time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.refills[key]; t != nil {
		t.Stop()
	}
	var own *time.Timer
	own = time.AfterFunc(pause, func() {
		s.mu.Lock()
		latest := s.refills[key] == own
		if latest {
			delete(s.refills, key)
		}
		leased := len(s.leases[key]) > 0
		s.mu.Unlock()
		if !latest || !leased {
			return
		}
		leave, ok := s.enter()
		if !ok {
			return
		}
		defer leave()
		if im, err := s.fetchable(s.ctx, key); err == nil {
			s.fillAgain(im, min(2*pause, refillLast))
		}
	})
	if s.refills == nil {
		s.refills = make(map[store.Key]*time.Timer)
	}
	s.refills[key] = own
}

func (s *server) leased(key store.Key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.leases[key]) > 0
}

// image gives the image that a request names.
func (s *server) image(ctx context.Context, r *http.Request) (*lazy.Image, error) {
	return s.fetchable(ctx, store.Key(r.PathValue("key")))
}

// fetchable gives an image of the cache, with somewhere to fetch from.
func (s *server) fetchable(ctx context.Context, key store.Key) (*lazy.Image, error) {
	im, err := s.cache.Image(ctx, key)
	if err != nil || im.HasRepo() || im.State() == store.Sealed {
		return im, err
	}
	repo, err := s.repoOf(ctx, im.Info(), "", nil)
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
	defer s.dropLease(key, l)
	s.handedOver(key, true)
	im, err := s.image(r.Context(), r)
	if err != nil {
		fail(w, err)
		return
	}
	_ = s.st.Touch(key) // on a disk that takes no more its use is forgotten
	defer func() { _ = s.st.Touch(key) }()
	if r.URL.Query().Get("fill") != "" {
		s.fill(im)
	}
	w.WriteHeader(http.StatusOK)
	http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

func (s *server) dropLease(key store.Key, l *lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.leases[key], l)
	if len(s.leases[key]) == 0 {
		delete(s.leases, key)
	}
}

// addLease refuses a lease of an image that is being removed.
func (s *server) addLease(key store.Key, l *lease) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removing[key] != nil {
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
	var b []byte // where they can't be present
	if err == nil {
		ctx := r.Context()
		if req.Timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeoutCause(ctx, req.Timeout, fmt.Errorf("no data for %v", req.Timeout.Round(10*time.Millisecond)))
			defer cancel()
		}
		var im *lazy.Image
		for range 2 { // a check that finds damage opens the image anew
			if im, err = s.image(ctx, r); err == nil {
				b, err = s.await(ctx, im, req)
			}
			if !errors.Is(err, lazy.ErrReopened) {
				break
			}
		}
	}
	if err != nil {
		if r.Context().Err() == nil {
			s.logOf(store.Key(r.PathValue("key"))).Warn("read fails", "off", req.Off, "n", req.N, "err", err)
		}
		fail(w, err)
		return
	}
	if b == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.Write(b)
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
		if err := s.cache.Trouble(r.Context()); err != nil && !sealed {
			out.send(Message{Error: toError(err)})
			return
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
	key := store.Key(r.PathValue("key"))
	ctx := blob.WithPurpose(r.Context(), blob.Purpose{Reason: blob.ForRepair, Image: string(key)})
	repo := func(info store.Info) (lazy.Repo, error) { return s.repoOf(ctx, info, req.Ref, req.Auth) }
	out := newLines(w)
	defer out.end()
	var last time.Time
	rep, err := s.cache.Fsck(ctx, key, repo, req.Heal, func(e lazy.Event) {
		if time.Since(last) > 100*time.Millisecond {
			last = time.Now()
			out.send(Message{Event: &e})
		}
	})
	if !rep.None() {
		s.logOf(key).Warn("image is damaged", "blocks", rep.Bad, "first", rep.Offsets, "tree", rep.Tree, "map", rep.Map, "root", rep.Root,
			"files", rep.Files, "healed", rep.Healed, "err", err)
	}
	if err == nil && rep.Healed && rep.Files == "" {
		var im *lazy.Image
		if im, err = s.fetchable(r.Context(), key); err == nil {
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
		switch {
		case s.st.Pinned(key):
			err = fmt.Errorf("image %.12s is %w: it is pinned", key, errBusy)
		case s.stillUsed(r.Context(), key):
			err = fmt.Errorf("image %.12s is %w: a process reads it", key, errBusy)
		default:
			if err = s.cache.Remove(r.Context(), key); err == nil {
				s.metrics.Forget(string(key))
			}
		}
		for _, ref := range r.URL.Query()["ref"] {
			if err == nil {
				err = s.st.RemoveRef(ref)
			}
		}
		s.mu.Lock()
		s.removalOver(key)
		s.mu.Unlock()
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// stillUsed tells whether a process that has no lease reads an image. One that has just given up its lease closes its files soon.
func (s *server) stillUsed(ctx context.Context, key store.Key) bool {
	for range 20 {
		if !s.st.Used(key) {
			return false
		}
		select {
		case <-ctx.Done():
			return true
		case <-time.After(25 * time.Millisecond):
		}
	}
	return true
}

// removal begins the removal of an image that nobody uses.
func (s *server) removal(key store.Key) error {
	if im := s.cache.Loaded(key); im != nil && im.Filling() && s.cache.Resting() == nil {
		return fmt.Errorf("image %.12s is %w: it is being filled", key, errBusy)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.leases[key] {
		return fmt.Errorf("image %.12s is %w: %s", key, errBusy, l.who)
	}
	if s.removing[key] != nil {
		return fmt.Errorf("%w: image %.12s is being removed", store.ErrNotCached, key)
	}
	s.removing[key] = make(chan struct{})
	return nil
}

// removalOver ends what removal began, whether the image is gone or not, and tells those who wait for it. s.mu is held.
func (s *server) removalOver(key store.Key) {
	close(s.removing[key])
	delete(s.removing, key)
}
