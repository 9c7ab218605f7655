package daemon

import (
	"context"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/profile"
	"github.com/pexfs/pex/lazy/ref"
)

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
		s.log.Warn("opening image", "ref", req.Ref, "err", err)
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
	ctx, opened := s.openingOf(ctx)
	defer opened("")
	var repo lazy.Repo
	if !req.Offline {
		if repo, err = s.openRepo(ctx, name, RepoOptions{Auth: req.Auth, HostAuth: req.HostAuth, HostsDirs: req.HostsDirs, Insecure: req.Insecure}); err != nil {
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
	s.collecting.RLock()
	defer s.collecting.RUnlock()
	var last time.Time
	progress := func(e lazy.Event) {
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
	}
	opt := lazy.OpenOptions{Cold: cold, Platform: p, Strict: req.Strict, Verify: req.Verify, Offline: req.Offline, Pull: req.Pull, Insecure: req.Insecure, HostsDirs: req.HostsDirs, MaxSize: req.MaxSize, MaxEntries: req.MaxEntries, Progress: progress}
	o, err := s.openToStay(ctx, func() (*lazy.Opened, error) { return s.cache.Open(ctx, name, repo, opt) })
	if made { // what that took is of no more use, and a filler needs little
		s.work.Go(debug.FreeOSMemory)
	}
	if err != nil {
		return nil, err
	}
	opened(o.Image.Info().Key)
	_ = s.st.Touch(o.Image.Info().Key)
	if req.Fill && req.Profile == nil { // else it begins with the lease, behind what a profile names
		s.fill(o.Image)
	}
	return &Opened{Key: o.Image.Info().Key, Ref: name.String(), Manifest: o.Manifest, Config: o.Config, Dir: o.Image.Dir(), State: o.Image.State()}, nil
}

// openToStay opens an image until it has one that is neither gone nor being removed, and is kept for a lease to come.
func (s *server) openToStay(ctx context.Context, open func() (*lazy.Opened, error)) (*lazy.Opened, error) {
	for {
		o, err := open()
		if err != nil {
			return nil, err
		}
		key := o.Image.Info().Key
		removed := s.handedOver(key, false)
		if removed == nil && s.cache.Loaded(key) == o.Image {
			return o, nil
		}
		if removed == nil { // it was removed before anybody knew of it
			continue
		}
		select {
		case <-removed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
