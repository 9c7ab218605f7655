package lazy

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/pexfs/pex/lazy/ref"
)

// TestPull opens a tag under each policy, in each state that the cache and the registry may be in.
func TestPull(t *testing.T) {
	files, names := testFiles()
	type state int
	const (
		unknown  state = iota // to the cache
		known                 // and unchanged
		changed               // it is another image now
		gone                  // known, and nothing answers
		removed               // known, but the image isn't in the cache any more
		noDigest              // known and unchanged, and only GET tells so
	)
	for _, tt := range []struct {
		name             string
		state            state
		pull             Pull
		probes, resolved int64 // a probe of a memRepo resolves, too
		newer, warned    bool
		err              error
	}{
		{name: "unknown", state: unknown, pull: PullMissing, resolved: 1},
		{name: "unknown, newer", state: unknown, pull: PullNewer, resolved: 1},
		{name: "unknown, always", state: unknown, pull: PullAlways, resolved: 1},
		{name: "unknown, never", state: unknown, pull: PullNever, err: ErrUnknownTag},
		{name: "known", state: known},
		{name: "known, newer", state: known, pull: PullNewer, probes: 1, resolved: 1},
		{name: "known, always", state: known, pull: PullAlways, probes: 1, resolved: 1},
		{name: "known, never", state: known, pull: PullNever},
		{name: "changed", state: changed, pull: PullMissing},
		{name: "changed, newer", state: changed, pull: PullNewer, probes: 1, resolved: 2, newer: true},
		{name: "changed, always", state: changed, pull: PullAlways, probes: 1, resolved: 2, newer: true},
		{name: "changed, never", state: changed, pull: PullNever},
		{name: "gone", state: gone, pull: PullMissing},
		{name: "gone, newer", state: gone, pull: PullNewer, probes: 1, resolved: 1, warned: true},
		{name: "gone, always", state: gone, pull: PullAlways, probes: 1, resolved: 2, err: ErrUnreachable},
		{name: "gone, never", state: gone, pull: PullNever},
		{name: "removed", state: removed, pull: PullMissing, probes: 1, resolved: 1},
		{name: "removed, never", state: removed, pull: PullNever},
		{name: "no digest, newer", state: noDigest, pull: PullNewer, probes: 1, resolved: 2},
		{name: "no digest, always", state: noDigest, pull: PullAlways, probes: 1, resolved: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRepo()
			r.image(t, r.gzipLayer(t, tarOf(t, files, names[:2]...)))
			c := newCache(t, filepath.Join(t.TempDir(), "c"))
			n, err := ref.Parse("registry.example/a:1")
			if err != nil {
				t.Fatal(err)
			}
			warned := false
			open := func(pull Pull) (*Opened, error) {
				return c.Open(context.Background(), n, r, OpenOptions{Platform: amd64, Pull: pull, Progress: func(e Event) { warned = warned || e.Stage == "warning" }})
			}
			before := r.root.Digest.Hex
			if tt.state != unknown {
				o, err := open("")
				if err != nil {
					t.Fatal(err)
				}
				if tt.state == removed {
					if err := c.Remove(t.Context(), o.Image.Info().Key); err != nil {
						t.Fatal(err)
					}
				}
			}
			if tt.state == changed {
				r.image(t, r.gzipLayer(t, tarOf(t, files, names[2:4]...)))
			}
			r.gone.Store(tt.state == gone)
			r.noDigest = tt.state == noDigest
			r.probes.Store(0)
			r.resolved.Store(0)
			o, err := open(tt.pull)
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err == nil && (o.Manifest != before) != tt.newer {
				t.Errorf("opened %s, which was %s", o.Manifest, before)
			}
			if r.probes.Load() != tt.probes || r.resolved.Load() != tt.resolved || warned != tt.warned {
				t.Errorf("%d probes, %d resolved, warned %v; want %d, %d, %v", r.probes.Load(), r.resolved.Load(), warned, tt.probes, tt.resolved, tt.warned)
			}
		})
	}
	if _, err := ParsePull("daily"); err == nil {
		t.Error("a policy that there is not was taken")
	}
}

// TestAsked holds that asking again is remembered, and not asking isn't, and that nothing is written for it.
func TestAsked(t *testing.T) {
	files, names := testFiles()
	r := newRepo()
	r.image(t, r.gzipLayer(t, tarOf(t, files, names[:2]...)))
	c := newCache(t, filepath.Join(t.TempDir(), "c"))
	n, err := ref.Parse("registry.example/a:1")
	if err != nil {
		t.Fatal(err)
	}
	asked := func(o OpenOptions) (time.Time, time.Time, bool) {
		t.Helper()
		o.Platform = amd64
		if _, err := c.Open(context.Background(), n, r, o); err != nil {
			t.Fatal(err)
		}
		kept, err := c.Store().Ref(n.String(), amd64.String())
		if err != nil {
			t.Fatal(err)
		}
		return kept.Asked, kept.Resolved, kept.Insecure
	}
	first, resolved, _ := asked(OpenOptions{})
	if again, _, _ := asked(OpenOptions{}); !again.Equal(first) {
		t.Error("nobody was asked, and a time was kept")
	}
	again, still, _ := asked(OpenOptions{Pull: PullNewer})
	if !again.After(first) || !still.Equal(resolved) {
		t.Errorf("asked at %v, then at %v; resolved at %v, then at %v", first, again, resolved, still)
	}
	if at, _, insecure := asked(OpenOptions{Insecure: true}); !insecure || !at.Equal(again) {
		t.Errorf("insecure %v, asked at %v, not %v", insecure, at, again)
	}
	if _, _, insecure := asked(OpenOptions{Offline: false}); insecure {
		t.Error("the permission was not taken back")
	}
}
