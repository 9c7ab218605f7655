package daemon

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/store"
)

// Usage is what the cache takes on disk.
type Usage struct {
	Images []ImageUsage `json:"images"` // the one first that was used last
	store.Usage
	Budget int64 `json:"budget"` // bytes that it may take
}

// ImageUsage is what an image takes on disk.
type ImageUsage struct {
	ImageStatus
	Disk   int64     `json:"disk"` // bytes in allocated blocks; file systems that clone count what images share for each
	Used   time.Time `json:"used"` // last
	Pinned bool      `json:"pinned"`
}

// GCRequest asks for what nobody needs to be removed.
type GCRequest struct {
	All    bool `json:"all"`    // also images that nobody uses
	DryRun bool `json:"dryRun"` // only tell
}

// GCResult is what was removed, or would be.
type GCResult struct {
	Removed []store.Removed `json:"removed"`
	Bytes   int64           `json:"bytes"`
}

func (s *server) usage(w http.ResponseWriter, _ *http.Request) {
	u, err := s.disk()
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(u)
}

func (s *server) disk() (*Usage, error) {
	disk, err := s.st.Usage()
	if err != nil {
		return nil, err
	}
	u := &Usage{Images: []ImageUsage{}, Usage: disk}
	if _, u.Budget, err = s.st.Space(); err != nil {
		return nil, err
	}
	infos, err := s.st.Images()
	if err != nil {
		return nil, err
	}
	byKey := make(map[store.Key]store.Info)
	for _, i := range infos {
		byKey[i.Key] = i
	}
	refs, err := s.st.Refs()
	if err != nil {
		return nil, err
	}
	uses, err := s.st.Uses()
	if err != nil {
		return nil, err
	}
	for i := len(uses) - 1; i >= 0; i-- {
		k := uses[i].Key
		if info, ok := byKey[k]; ok {
			u.Images = append(u.Images, ImageUsage{s.imageStatus(info, refs), disk.Images[k], uses[i].Last, s.st.Pinned(k)})
		}
	}
	return u, nil
}

// pin keeps an image though nobody uses it; unpin ends that.
func (s *server) pin(w http.ResponseWriter, r *http.Request)   { s.setPinned(w, r, true) }
func (s *server) unpin(w http.ResponseWriter, r *http.Request) { s.setPinned(w, r, false) }

func (s *server) setPinned(w http.ResponseWriter, r *http.Request, pinned bool) {
	key := store.Key(r.PathValue("key"))
	l := &lease{who: "being pinned"}
	err := error(store.ErrNotCached)
	if s.addLease(key, l) {
		err = s.st.SetPinned(key, pinned)
		s.dropLease(key, l)
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) gc(w http.ResponseWriter, r *http.Request) {
	var req GCRequest
	if err := readBody(r, &req); err != nil {
		fail(w, err)
		return
	}
	gone, err := s.collectNow(r.Context(), lazy.CollectOptions{All: req.All, Dry: req.DryRun})
	if err != nil {
		fail(w, err)
		return
	}
	res := GCResult{Removed: append([]store.Removed{}, gone...)}
	for _, g := range gone {
		res.Bytes += g.Bytes
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(res)
}

// collectNow removes what nobody needs. What openings may have begun to write is left alone while there are some.
func (s *server) collectNow(ctx context.Context, o lazy.CollectOptions) ([]store.Removed, error) {
	if o.Opening = !s.collecting.TryLock(); !o.Opening {
		defer s.collecting.Unlock()
	}
	return s.cache.Collect(ctx, o)
}

// collect does that when the daemon starts, and every hour.
func (s *server) collect() {
	t := time.NewTicker(time.Hour)
	defer t.Stop()
	for {
		gone, err := s.collectNow(s.ctx, lazy.CollectOptions{})
		switch {
		case s.ctx.Err() != nil:
			return
		case err != nil:
			s.log.Warn("removing what nobody needs", "err", err)
		case len(gone) > 0:
			s.log.Info("what nobody needs was removed", "things", len(gone))
		}
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
	}
}
