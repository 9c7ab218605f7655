package lazy

import (
	"context"
	"math"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pexfs/pex/lazy/profile"
	"github.com/pexfs/pex/lazy/ref"
)

func TestSpans(t *testing.T) {
	const mib = 1 << 20
	sizes := map[string]int64{"a": 100 * mib, "b": 10 * mib}
	for _, c := range []struct {
		name    string
		touches []profile.Touch
		want    []span
	}{
		{"none", nil, nil},
		{"in the order of first touch", []profile.Touch{{Layer: 1, Off: 5 * mib, N: 10}, {Layer: 0, Off: 7, N: 20}}, []span{{"b", 5 * mib, 10, 0}, {"a", 7, 20, 1}}},
		{"neighbours, the later one touched first", []profile.Touch{{Off: 1000, N: 10}, {Layer: 1, N: 5}, {Off: 0, N: 500}}, []span{{"a", 0, 1010, 0}, {"b", 0, 5, 1}}},
		{"one within another", []profile.Touch{{Off: 0, N: 1000}, {Off: 10, N: 20}}, []span{{"a", 0, 1000, 0}}},
		{"too far apart", []profile.Touch{{Off: 0, N: 10}, {Off: 11 + fetchGap, N: 10}}, []span{{"a", 0, 10, 0}, {"a", 11 + fetchGap, 10, 1}}},
		{"no larger than a replay's run", []profile.Touch{{Off: 0, N: replayRun - 10}, {Off: replayRun - 10, N: 20}}, []span{{"a", 0, replayRun - 10, 0}, {"a", replayRun - 10, 20, 1}}},
		{"no more than memory is for", []profile.Touch{{Off: 0, N: earlyMax}, {Off: 50 * mib, N: 1}}, []span{{"a", 0, earlyMax, 0}}},
		{"gaps take memory, too", []profile.Touch{{Off: 0, N: earlyMax - 10}, {Layer: 1, Off: 0, N: 1}, {Layer: 1, Off: fetchGap, N: 1}}, []span{{"a", 0, earlyMax - 10, 0}}},
		{"layers that the image hasn't got, ranges that aren't in the blob", []profile.Touch{
			{Layer: 2, N: 10}, {Layer: 1, Off: 10*mib - 5, N: 6}, {Off: -1, N: 2}, {Off: math.MaxInt64, N: math.MaxInt64}, {N: 1},
		}, []span{{"a", 0, 1, 4}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := spans(&profile.Profile{Layers: []string{"a", "b", "of another image"}, Touches: c.touches}, sizes)
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(span{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// openEarly opens a:1 with a profile that first gives.
func openEarly(t *testing.T, r Repo, first func(context.Context) *profile.Profile) *Image {
	t.Helper()
	name, err := ref.Parse("localhost/a:1")
	if err != nil {
		t.Fatal(err)
	}
	o, err := newCache(t, filepath.Join(t.TempDir(), "c")).Open(t.Context(), name, r, OpenOptions{
		Platform: amd64, Cold: func(string) func(context.Context) *profile.Profile { return first },
	})
	if err != nil {
		t.Fatal(err)
	}
	return o.Image
}

func TestEarly(t *testing.T) {
	r, l, files := scattered(t)
	im := mustOpen(t, newCache(t, filepath.Join(t.TempDir(), "c")), r, "a:1")
	p := mustProfile(t, im, readsOf(im, program()))
	opening, openingBytes := r.requests.Load(), r.of(l.d)

	t.Run("before the replay", func(t *testing.T) {
		requests, bytes := r.requests.Load(), r.of(l.d)
		im := openEarly(t, r, func(context.Context) *profile.Profile { return p })
		im.early.work.Wait()
		im.Replay(p)
		im.jobs.Wait()
		need(t, im, program()...)
		im.jobs.Wait()
		if n, b := r.requests.Load()-requests-opening, r.of(l.d)-bytes-openingBytes; n != 10 || b != p.Bytes() {
			t.Errorf("%d requests for %d bytes, want 10 for %d", n, b, p.Bytes())
		}
		if im.early != nil {
			t.Error("what was fetched early is kept behind the replay")
		}
		if err := im.Fill(t.Context()); err != nil {
			t.Fatal(err)
		}
		check(t, im, files)
	})
	t.Run("known after the replay", func(t *testing.T) {
		requests := r.requests.Load()
		known, asked := make(chan struct{}), make(chan struct{})
		im := openEarly(t, r, func(context.Context) *profile.Profile {
			defer close(asked)
			<-known
			return p
		})
		e := im.early
		im.Replay(p)
		need(t, im, program()...)
		close(known)
		<-asked
		e.work.Wait()
		im.jobs.Wait()
		if n := r.requests.Load() - requests - opening; n > 11 { // a reader may have divided a run
			t.Errorf("%d requests: what is replayed is fetched early, too", n)
		}
	})
	t.Run("fault", func(t *testing.T) {
		im := mustOpen(t, newCache(t, filepath.Join(t.TempDir(), "c")), r, "a:1")
		broken := newRepo()
		broken.gone.Store(true)
		e := fetchEarly([]source{{d: l.d, repo: broken}}, nil, func(context.Context) *profile.Profile { return p })
		e.work.Wait()
		if n := len(e.held[l.d.Digest.String()]); n != 10 {
			t.Errorf("%d ranges were tried", n)
		}
		im.setEarly(e)
		im.Replay(p)
		im.jobs.Wait()
		for _, f := range program() {
			if !im.file.Has(im.plan.extent(f).off, 1) {
				t.Fatalf("file %d is missing", f)
			}
		}
	})
	t.Run("nobody replays it", func(t *testing.T) {
		ended := make(chan struct{})
		im := openEarly(t, r, func(ctx context.Context) *profile.Profile {
			defer close(ended)
			<-ctx.Done()
			return nil
		})
		if err := im.c.Remove(t.Context(), im.file.Info.Key); err != nil {
			t.Error(err)
		}
		<-ended
	})
	t.Run("the opening fails", func(t *testing.T) {
		bad := newRepo()
		bad.image(t, madeLayer{bad.put([]byte("no layer at all"), l.d.MediaType), l.diff})
		name, err := ref.Parse("localhost/a:1")
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		_, err = newCache(t, filepath.Join(t.TempDir(), "c")).Open(t.Context(), name, bad, OpenOptions{
			Platform: amd64, Cold: func(string) func(context.Context) *profile.Profile {
				return func(ctx context.Context) *profile.Profile {
					defer close(ended)
					<-ctx.Done()
					return nil
				}
			},
		})
		if err == nil {
			t.Error("opened")
		}
		<-ended
	})
}
