package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/profile"
	"github.com/pexfs/pex/lazy/store"
)

// Where profiles come from. What was imported or found is never replaced by a recording.
const (
	Recorded = "recorded" // on this machine
	Imported = "imported"
	Found    = "found" // beside the image
)

// Kept is a profile in the cache.
type Kept struct {
	Origin  string          `json:"origin"`
	Profile json.RawMessage `json:"profile"` // as profile.Decode reads it
}

// ProfileSummary is what `profile ls` shows.
type ProfileSummary struct {
	ID       string    `json:"id"`
	Image    string    `json:"image"` // digest of the manifest
	Refs     []string  `json:"refs"`  // that stand for it
	Name     string    `json:"name"`
	Origin   string    `json:"origin"`
	Recorded time.Time `json:"recorded"`
	Touches  int       `json:"touches"`
	Bytes    int64     `json:"bytes"` // compressed, that it names
}

// ReplayRequest asks for a profile to be replayed.
type ReplayRequest struct {
	Manifest string `json:"manifest"`
	Name     string `json:"name"`
}

// ReadsRequest says what was read of an image since it was opened.
type ReadsRequest struct {
	Manifest string     `json:"manifest"`
	Name     string     `json:"name"`
	Reads    [][3]int64 `json:"reads"` // first block, number of blocks, milliseconds; in order
}

// kept gives the cache's profile of an image and a name.
func (s *server) kept(manifest, name string) (*profile.Profile, error) {
	k, err := s.keptAs(profile.ID("sha256:"+manifest, name))
	if err != nil {
		return nil, err
	}
	return profile.Decode(k.Profile)
}

func (s *server) keptAs(id string) (*Kept, error) {
	b, err := s.st.Profile(id)
	if err != nil {
		return nil, err
	}
	k := new(Kept)
	if err := json.Unmarshal(b, k); err != nil {
		return nil, fmt.Errorf("%w: reading profile %.12s: %w", store.ErrDamaged, id, err)
	}
	return k, nil
}

// keep keeps a profile unless a better one is there. An imported one gives way to another import only, one that was found not to a
// recording, and a recording to that of a run that read more: a first run may have been interrupted.
func (s *server) keep(ctx context.Context, p *profile.Profile, origin string) error {
	b, err := p.Encode()
	if err == nil {
		b, err = json.Marshal(Kept{origin, b})
	}
	if err != nil {
		return err
	}
	id := profile.ID(p.Image, p.Name)
	unlock, err := s.keeping.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if k, err := s.keptAs(id); err == nil {
		old, err := profile.Decode(k.Profile)
		switch {
		case err != nil || origin == Imported:
		case k.Origin == Imported, origin == Recorded && (k.Origin == Found || old.Bytes() >= p.Bytes()):
			return nil
		}
	}
	return s.st.PutProfile(id, b)
}

// replay answers at once; what profile there is shows later, if it is still being looked for.
func (s *server) replay(w http.ResponseWriter, r *http.Request) {
	var req ReplayRequest
	err := readBody(r, &req)
	var im *lazy.Image
	if err == nil {
		im, err = s.image(r.Context(), r)
	}
	if err == nil {
		err = s.checkManifest(im, req.Manifest)
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
	if im.State() == store.Sealed || s.ctx.Err() != nil {
		return
	}
	if p, err := s.kept(req.Manifest, req.Name); err == nil {
		im.Replay(p) // before the filler, which comes with the lease
		return
	}
	s.work.Go(func() {
		if p := s.first(s.ctx, req.Manifest, req.Name); p != nil {
			im.Replay(p)
		}
	})
}

// first gives the profile of a name that the cache has of an image, or that is found beside it, else the one without a name, or nil.
func (s *server) first(ctx context.Context, manifest, name string) *profile.Profile {
	if p, err := s.kept(manifest, name); err == nil {
		return p
	}
	s.found.mu.Lock()
	f := s.found.m[manifest]
	s.found.mu.Unlock()
	if f != nil {
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil
		}
		ctx, cancel := context.WithTimeout(ctx, findTime)
		defer cancel()
		p, err := s.fetchFound(ctx, f, manifest, name)
		if err != nil {
			s.log.Debug("getting profile", "manifest", manifest, "err", err)
		}
		if p != nil {
			return p
		}
	}
	p, _ := s.kept(manifest, "") // what is read of it by whatever runs
	return p
}

// checkManifest holds that an image was made of a manifest.
func (s *server) checkManifest(im *lazy.Image, manifest string) error {
	rec, err := s.st.Record(manifest)
	if err == nil && rec.Image != im.Info().Key {
		err = fmt.Errorf("manifest %.12s is of another image than %.12s", manifest, im.Info().Key)
	}
	return err
}

// reads keeps a recording as a profile.
func (s *server) reads(w http.ResponseWriter, r *http.Request) {
	var req ReadsRequest
	err := readBody(r, &req)
	var im *lazy.Image
	if err == nil {
		im, err = s.image(r.Context(), r)
	}
	if err == nil {
		err = s.checkManifest(im, req.Manifest)
	}
	if err == nil {
		err = s.record(r.Context(), im, req)
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) record(ctx context.Context, im *lazy.Image, req ReadsRequest) error {
	if len(req.Reads) > profile.MaxTouches {
		return fmt.Errorf("recording profile: %d reads, more than %d", len(req.Reads), profile.MaxTouches)
	}
	reads := make([]profile.Read, len(req.Reads))
	for i, t := range req.Reads {
		reads[i] = profile.Read{Block: t[0], Blocks: t[1], At: time.Duration(t[2]) * time.Millisecond}
	}
	p, err := im.Profile(req.Manifest, req.Name, reads)
	if err != nil || len(p.Touches) == 0 || wholesale(p, im.Info()) {
		return err
	}
	return s.keep(ctx, p, Recorded)
}

// maxStart is how many bytes a recording may name even if they are most of the image.
const maxStart = 64 << 20

// wholesale tells whether much and most of an image was read: by a copy of it or a search, which no start needs fetched ahead.
func wholesale(p *profile.Profile, info store.Info) bool {
	var size int64
	for _, l := range info.Layers {
		if l.TOC {
			size += l.Size
		}
	}
	return p.Bytes() > maxStart && p.Bytes() > size/2
}

func (s *server) listProfiles(w http.ResponseWriter, _ *http.Request) {
	ids, err := s.st.Profiles()
	if err != nil {
		fail(w, err)
		return
	}
	refs, err := s.st.Refs()
	if err != nil {
		fail(w, err)
		return
	}
	all := []ProfileSummary{}
	for _, id := range ids {
		k, err := s.keptAs(id)
		var p *profile.Profile
		if err == nil {
			p, err = profile.Decode(k.Profile)
		}
		if err != nil {
			s.log.Warn("reading profile", "id", id, "err", err)
			continue
		}
		sum := ProfileSummary{ID: id, Image: p.Image, Refs: []string{}, Name: p.Name, Origin: k.Origin, Recorded: p.Recorded, Touches: len(p.Touches), Bytes: p.Bytes()}
		for _, r := range refs {
			if "sha256:"+r.Manifest == p.Image {
				sum.Refs = append(sum.Refs, r.Ref)
			}
		}
		slices.Sort(sum.Refs)
		all = append(all, sum)
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(all)
}

func (s *server) getProfile(w http.ResponseWriter, r *http.Request) {
	k, err := s.keptAs(r.PathValue("id"))
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(k.Profile)
}

func (s *server) putProfile(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	var p *profile.Profile
	if err == nil {
		p, err = profile.Decode(b)
	}
	if err == nil {
		err = s.keep(r.Context(), p, Imported)
	}
	if err != nil {
		fail(w, fmt.Errorf("importing profile: %w", err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) removeProfile(w http.ResponseWriter, r *http.Request) {
	if err := s.st.RemoveProfile(r.PathValue("id")); err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
