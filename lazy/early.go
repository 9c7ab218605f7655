package lazy

import (
	"cmp"
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/profile"
)

const (
	earlyMax  = 24 << 20 // bytes that are held in memory, at most
	earlyLife = 20 * time.Second
)

// early is what a profile names, fetched while the image is still put together: replay finds it there. Layers that are read whole, and those
// that another image has, are left out. It is let go of when the replay ends, or when none has come for earlyLife.
type early struct {
	ctx  context.Context
	end  context.CancelFunc
	work sync.WaitGroup

	mu     sync.Mutex // guards what follows
	closed bool       // nothing more is fetched
	bytes  int64      // fetched
	held   map[string][]*blob.Held
}

// span is a range of a layer's blob.
type span struct {
	layer   string // digest
	off, n  int64
	touched int // which touch it begins with
}

// spans gives the beginning of a profile as ranges of the given layers, in the order of first touch. Neighbours are merged as a replay does.
func spans(p *profile.Profile, sizes map[string]int64) (all []span) {
	var touches []span
	for i, t := range p.Touches {
		d := p.Layers[t.Layer]
		if size, ok := sizes[d]; !ok || blob.CheckRange(size, t.Off, t.N) != nil {
			continue
		}
		touches = append(touches, span{d, t.Off, t.N, i})
	}
	slices.SortFunc(touches, func(a, b span) int { return cmp.Or(cmp.Compare(a.layer, b.layer), cmp.Compare(a.off, b.off)) })
	for _, t := range touches {
		if n := len(all); n > 0 {
			s := &all[n-1]
			if end := max(s.off+s.n, t.off+t.n); s.layer == t.layer && t.off <= s.off+s.n+fetchGap && end-s.off <= replayRun {
				s.n, s.touched = end-s.off, min(s.touched, t.touched)
				continue
			}
		}
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.touched, b.touched) })
	left := int64(earlyMax)
	for i, s := range all {
		if left -= s.n; left < 0 {
			return all[:i]
		}
	}
	return all
}

// elsewhere are the layers, by digest, that images of the cache have: their contents are taken from there.
func (c *Cache) elsewhere() (map[string]bool, error) {
	infos, err := c.st.Images()
	has := make(map[string]bool)
	for _, info := range infos {
		for _, l := range info.Layers {
			has[l.Digest] = true
		}
	}
	return has, err
}

// fetchEarly begins to fetch what a profile, which first gives when it is known, names of other layers than those in elsewhere.
func fetchEarly(sources []source, elsewhere map[string]bool, first func(context.Context) *profile.Profile) *early {
	e := &early{held: make(map[string][]*blob.Held)}
	e.ctx, e.end = context.WithCancel(blob.WithPurpose(context.Background(), blob.Purpose{Reason: blob.ForProfile}))
	sizes, blobs := make(map[string]int64), make(map[string]blob.Source)
	for _, s := range sources {
		d := s.d.Digest.String()
		if tocName(s.d) == "" || elsewhere[d] {
			continue
		}
		sizes[d], blobs[d] = s.d.Size, s.repo.Blob(s.d)
	}
	e.work.Go(func() {
		p := first(e.ctx)
		if p == nil {
			return
		}
		next := make(chan span)
		for range replayers {
			e.work.Go(func() {
				for s := range next {
					if h := e.hold(s); h != nil {
						h.Fill(e.ctx, blobs[s.layer])
					}
				}
			})
		}
		defer close(next)
		for _, s := range spans(p, sizes) {
			select {
			case next <- s:
			case <-e.ctx.Done():
				return
			}
		}
	})
	return e
}

// hold takes memory for a range, or gives nil if nothing more is fetched.
func (e *early) hold(s span) *blob.Held {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.bytes += s.n
	h := blob.NewHeld(s.off, s.n, nil)
	of := append(e.held[s.layer], h)
	slices.SortFunc(of, func(a, b *blob.Held) int { return cmp.Compare(a.Off(), b.Off()) })
	e.held[s.layer] = of
	return h
}

// close ends it after what is under way: somebody else fetches the rest.
func (e *early) close() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
}

// size is how many bytes were fetched.
func (e *early) size() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.bytes
}

// source is src with what is held of it, or on its way, taken from there.
func (e *early) source(src blob.Source, digest string) blob.Source {
	return &earlySource{src, e, digest}
}

type earlySource struct {
	blob.Source
	e      *early
	digest string
}

func (s *earlySource) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	held := s.e.cover(s.digest, off, n)
	if held == nil {
		return s.Source.Fetch(ctx, off, n)
	}
	return &earlyReader{ctx: ctx, src: s.Source, held: held, at: off, end: off + n}, nil
}

// cover gives what holds a range together, in order, or nil if something of it isn't held.
func (e *early) cover(digest string, off, n int64) (held []*blob.Held) {
	e.mu.Lock()
	defer e.mu.Unlock()
	at := off
	for _, h := range e.held[digest] {
		if h.Off() <= at && at < h.Off()+h.Len() {
			held = append(held, h)
			at = h.Off() + h.Len()
		}
		if at >= off+n {
			return held
		}
	}
	return nil
}

// earlyReader reads what is held, and fetches the rest after a fault of that.
type earlyReader struct {
	ctx     context.Context
	src     blob.Source
	held    []*blob.Held
	at, end int64
	rest    io.ReadCloser
}

func (r *earlyReader) Read(p []byte) (n int, err error) {
	switch {
	case r.rest != nil:
		return r.rest.Read(p)
	case r.at == r.end:
		return 0, io.EOF
	}
	h := r.held[0]
	n, err = h.ReadAt(r.ctx, p[:min(int64(len(p)), r.end-r.at)], r.at)
	if r.at += int64(n); r.at == h.Off()+h.Len() {
		r.held = r.held[1:]
	}
	if err == nil || r.ctx.Err() != nil {
		return n, err
	}
	if r.rest, err = r.src.Fetch(r.ctx, r.at, r.end-r.at); err != nil {
		return 0, err
	}
	return r.rest.Read(p)
}

func (r *earlyReader) Close() error {
	if r.rest != nil {
		return r.rest.Close()
	}
	return nil
}

// setEarly gives an image what was fetched for it early; it ends with the image.
func (im *Image) setEarly(e *early) {
	ctx, done, err := im.begin(context.Background())
	if err != nil {
		e.end()
		e.work.Wait()
		return
	}
	im.mu.Lock()
	im.early = e
	im.mu.Unlock()
	stop := context.AfterFunc(ctx, e.end)
	forget := time.AfterFunc(earlyLife, func() { im.dropEarly(e) })
	go func() {
		defer done()
		<-e.ctx.Done()
		stop()
		forget.Stop()
		e.work.Wait()
	}()
}

// dropEarly lets go of what was fetched early.
func (im *Image) dropEarly(e *early) {
	e.close()
	im.mu.Lock()
	if im.early == e {
		im.early = nil
		im.fetched.Add(e.size())
	}
	im.mu.Unlock()
	e.end()
}
