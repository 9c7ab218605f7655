package daemon

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/profile"
)

const (
	findTime    = 5 * time.Second // that looking for profiles beside an image may take
	findSilent  = 8               // artifacts that a list doesn't name are read for their names
	foundMemory = 64              // images whose lists are remembered
)

// finding is a look for profiles beside an image.
type finding struct {
	done chan struct{}
	from Referrers
	list []v1.Descriptor // the newest of each name; valid once done is closed
}

// findings are the looks since the daemon was started, by the manifest's digest. The zero value is ready.
type findings struct {
	mu sync.Mutex
	m  map[string]*finding
}

// Referrers is a repo that can list what refers to a manifest.
type Referrers interface {
	lazy.Repo
	Referrers(ctx context.Context, subject v1.Hash, artifactType string) ([]v1.Descriptor, error)
}

// find starts to look for profiles beside an image, unless the cache has the one of this name. It fetches that, too.
func (s *server) find(r lazy.Repo, manifest, name string) {
	if _, err := s.kept(manifest, name); err == nil {
		return
	}
	from, ok := r.(Referrers)
	if wrapped, is := r.(*repo); is {
		from, ok = wrapped.Repo.(Referrers)
	}
	if !ok || s.ctx.Err() != nil {
		return
	}
	f := &finding{done: make(chan struct{}), from: from}
	s.found.mu.Lock()
	defer s.found.mu.Unlock()
	if s.found.m == nil || len(s.found.m) >= foundMemory {
		s.found.m = make(map[string]*finding)
	}
	if other := s.found.m[manifest]; other != nil {
		select {
		case <-other.done:
		default:
			return
		}
	}
	s.found.m[manifest] = f
	s.work.Go(func() {
		defer close(f.done)
		ctx, cancel := context.WithTimeout(s.ctx, findTime)
		defer cancel()
		var err error
		if f.list, err = ListArtifacts(ctx, from, v1.Hash{Algorithm: "sha256", Hex: manifest}); err != nil {
			s.log.Debug("looking for profiles", "manifest", manifest, "err", err)
			return
		}
		if _, err := s.fetchFound(ctx, f, manifest, name); err != nil {
			s.log.Debug("getting profile", "manifest", manifest, "err", err)
		}
	})
}

// ListArtifacts lists the profiles beside an image, the newest first, one of each name. Their descriptors have their names.
func ListArtifacts(ctx context.Context, from Referrers, image v1.Hash) ([]v1.Descriptor, error) {
	all, err := from.Referrers(ctx, image, profile.ArtifactType)
	if err != nil {
		return nil, err
	}
	silent := 0
	for i := range all {
		d := &all[i]
		if _, ok := d.Annotations[profile.NameAnnotation]; ok || silent == findSilent {
			continue
		}
		silent++ // a list made by a client that leaves annotations out
		if m, err := artifact(ctx, from, *d); err == nil {
			d.Annotations = m.Annotations
		}
	}
	slices.SortStableFunc(all, func(a, b v1.Descriptor) int {
		return cmp.Compare(b.Annotations[createdAnnotation], a.Annotations[createdAnnotation])
	})
	seen := make(map[string]bool)
	return slices.DeleteFunc(all, func(d v1.Descriptor) bool {
		name, ok := d.Annotations[profile.NameAnnotation]
		dup := seen[name]
		seen[name] = true
		return !ok || dup
	}), nil
}

const createdAnnotation = "org.opencontainers.image.created"

// artifact reads a profile's OCI manifest.
func artifact(ctx context.Context, r lazy.Repo, d v1.Descriptor) (*v1.Manifest, error) {
	raw, err := r.Manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	return v1.ParseManifest(bytes.NewReader(raw))
}

// ReadArtifact gets a profile from the artifact that ListArtifacts found beside an image.
func ReadArtifact(ctx context.Context, r lazy.Repo, d v1.Descriptor, manifest string) (*profile.Profile, error) {
	m, err := artifact(ctx, r, d)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(m.Layers, func(l v1.Descriptor) bool { return l.MediaType == profile.MediaType && l.Size <= profile.MaxSize })
	if i < 0 {
		return nil, fmt.Errorf("artifact %s: %w: it has no layer of that kind", d.Digest, profile.ErrInvalid)
	}
	b, err := r.Manifest(ctx, m.Layers[i])
	if err != nil {
		return nil, err
	}
	p, err := profile.Decode(b)
	if err != nil {
		return nil, fmt.Errorf("artifact %s: %w", d.Digest, err)
	}
	if p.Image != "sha256:"+manifest || p.Name != d.Annotations[profile.NameAnnotation] {
		return nil, fmt.Errorf("artifact %s: %w of this image and name", d.Digest, profile.ErrInvalid)
	}
	return p, nil
}

// fetchFound gets the profile of a name, or the one without, that was found beside an image, and keeps it; nil if there is none.
func (s *server) fetchFound(ctx context.Context, f *finding, manifest, name string) (*profile.Profile, error) {
	for _, n := range []string{name, ""} {
		i := slices.IndexFunc(f.list, func(d v1.Descriptor) bool { return d.Annotations[profile.NameAnnotation] == n })
		if i < 0 {
			continue
		}
		if p, err := s.kept(manifest, n); err == nil {
			return p, nil
		}
		p, err := ReadArtifact(ctx, f.from, f.list[i], manifest)
		if err != nil {
			return nil, err
		}
		return p, s.keep(ctx, p, Found)
	}
	return nil, nil
}
