package compress

import (
	"context"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/disk"
)

// segment is a part of a content on its way through an encoder.
type segment struct {
	content *content
	off     int64 // in the content
	n       int   // bytes of it
	limit   int   // blocks that it may have compressed; 0 where it isn't to be compressed
	blocks  int   // that it has compressed, 0 if that is too many
	err     error
	done    chan struct{} // gets one value when the encoder is ready

	data [segmentSize]byte // the last block filled with zeros
	out  [segmentSize]byte
}

// writeContents reads all contents, compresses them on all processors, and writes them in their order.
func (t *transfer) writeContents(ctx context.Context, out *output, o Options) error {
	workers := runtime.GOMAXPROCS(0)
	g, ctx := errgroup.WithContext(ctx)
	free := make(chan *segment, 2*workers)
	for range cap(free) {
		free <- &segment{done: make(chan struct{}, 1)}
	}
	// there is room for all segments: who sends never waits
	work, ready := make(chan *segment, cap(free)), make(chan *segment, cap(free))
	g.Go(func() error {
		defer close(work)
		defer close(ready)
		return t.readContents(ctx, o, free, func(s *segment) {
			work <- s
			ready <- s
		})
	})
	for range workers {
		g.Go(func() error {
			encode, err := newEncoder(o)
			if err != nil {
				return err
			}
			for s := range work {
				s.err = s.compress(encode)
				s.done <- struct{}{}
			}
			return nil
		})
	}
	g.Go(func() error {
		progress := newProgress(o.Progress, t.total)
		for s := range ready {
			select {
			case <-s.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if s.err != nil {
				return s.err
			}
			if err := t.writeSegment(out, s); err != nil {
				return err
			}
			progress.add(int64(s.n))
			free <- s
		}
		return nil
	})
	return g.Wait()
}

// readContents reads one content after the other and sends its segments.
func (t *transfer) readContents(ctx context.Context, o Options, free <-chan *segment, send func(*segment)) error {
	for _, i := range t.order {
		c := &t.contents[i]
		in, err := t.im.Inode(t.nodes[c.node].nid)
		if err != nil {
			return err
		}
		for off := int64(0); off < c.size; off += segmentSize {
			var s *segment
			select {
			case s = <-free:
			case <-ctx.Done():
				return ctx.Err()
			}
			s.content, s.off, s.n = c, off, int(min(segmentSize, c.size-off))
			if err := t.readContent(in, s.data[:s.n], off); err != nil {
				return err
			}
			clear(s.data[s.n:roundUp(int64(s.n), blockSize)])
			s.limit = t.limit(c, s.n, o.Algorithm)
			send(s)
		}
	}
	return nil
}

// readContent fills p with an inode's content from off on.
func (t *transfer) readContent(in erofs.Inode, p []byte, off int64) error {
	n, err := t.im.ReadFileAt(in, p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("reading content of inode %d: %w", in.Nid, err)
}

// limit tells how many blocks n bytes of a content may have compressed: fewer than plain, and where that would be the whole, so few
// that with the index they are less than flat data whose end is inline.
func (t *transfer) limit(c *content, n int, a Algorithm) int {
	if n <= blockSize || c.shared && a == LZ4 {
		return 0
	}
	limit := int(roundUp(int64(n), blockSize)/blockSize) - 1
	if int64(n) == c.size && t.endInline(c) {
		index := disk.MapHeaderSize + disk.FullIndexGap + disk.FullEntrySize*(limit+1)
		limit = min(limit, (n-1-index)/blockSize)
	}
	return limit
}

// endInline tells whether the end of a content is to follow the inode if the content is not compressed.
func (t *transfer) endInline(c *content) bool {
	tail := c.size % blockSize
	return tail > 0 && c.size <= segmentSize && !c.shared && disk.InodeExtended+int64(t.nodes[c.node].xattrs)+tail <= blockSize
}

// compress fills out with whole blocks, zeros first, if that is within the limit.
func (s *segment) compress(encode encoder) error {
	s.blocks = 0
	if s.limit == 0 {
		return nil
	}
	n, err := encode(s.out[:s.limit*blockSize], s.data[:s.n])
	if err != nil {
		return fmt.Errorf("compressing %d bytes: %w", s.n, err)
	}
	s.blocks = (n + blockSize - 1) / blockSize
	pad := s.blocks*blockSize - n
	copy(s.out[pad:], s.out[:n])
	clear(s.out[:pad])
	return nil
}

// writeSegment writes the next segment of a content, but for an end that will be inline.
func (t *transfer) writeSegment(out *output, s *segment) error {
	c := s.content
	b := s.data[:roundUp(int64(s.n), blockSize)]
	switch {
	case s.blocks > 0:
		if c.clusters == nil {
			c.clusters = make([]uint8, (c.size+segmentSize-1)/segmentSize)
		}
		c.clusters[s.off/segmentSize] = uint8(s.blocks)
		b = s.out[:s.blocks*blockSize]
	case t.endInline(c):
		t.nodes[c.node].inline = true
		b = s.data[:s.n/blockSize*blockSize]
	}
	if len(b) == 0 {
		return nil
	}
	if s.off == 0 {
		c.start = uint32(out.at / blockSize)
	}
	c.blocks += uint32(len(b) / blockSize)
	return out.write(b)
}

// progress calls a function some 100 times.
type progress struct {
	f                 func(done, total int64)
	done, told, total int64
}

func newProgress(f func(done, total int64), total int64) *progress {
	if f == nil {
		f = func(int64, int64) {}
	}
	return &progress{f: f, total: total}
}

func (p *progress) add(n int64) {
	p.done += n
	if p.done-p.told >= p.total/100 || p.done == p.total {
		p.told = p.done
		p.f(p.done, p.total)
	}
}
