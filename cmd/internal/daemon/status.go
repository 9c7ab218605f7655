package daemon

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/pexfs/pex/lazy/store"
)

func (s *server) imageStatus(info store.Info, refs []store.Ref) ImageStatus {
	im := s.cache.Loaded(info.Key)
	if im != nil {
		info = im.Info()
	}
	st := ImageStatus{
		Key: info.Key, Manifest: info.Manifest, State: info.State, Size: info.Size, Inodes: info.Inodes, Root: info.Root,
		Created: info.Created, Layers: make([]LayerStatus, len(info.Layers)), Refs: []string{}, Tags: []TagStatus{}, Users: []string{},
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
			st.Tags = append(st.Tags, TagStatus{r.Ref, r.Asked})
		}
	}
	slices.SortFunc(st.Tags, func(a, b TagStatus) int { return strings.Compare(a.Ref, b.Ref) })
	for _, t := range st.Tags {
		st.Refs = append(st.Refs, t.Ref)
	}
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
	st := Status{PID: os.Getpid(), Cache: s.st.Dir(), Started: s.started, Confined: s.confined, Opening: []Opening{}, Images: []ImageStatus{}}
	if err := s.cache.Trouble(r.Context()); err != nil {
		st.Trouble = err.Error()
	}
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
				s.logOf(i.Key).Warn("status", "err", err)
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
