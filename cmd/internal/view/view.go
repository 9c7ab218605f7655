// Package view reads an image of the cache in a process of its own: present bytes from the image file, and for missing ones it
// asks the daemon and waits. It needs no network and no credentials. A daemon that dies only makes it wait: it has
// another one started, takes its lease again and asks again.
package view

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/profile"
	"github.com/pexfs/pex/lazy/store"
)

// Image is an image being read. Its methods may be called concurrently.
type Image struct {
	v      *store.View
	meta   *erofs.Image
	mapped []byte
	c      *daemon.Client
	who    string
	fill   bool
	wait   time.Duration
	key    store.Key
	ensure func(context.Context) error

	cancel context.CancelFunc
	leased sync.WaitGroup

	reads    *profile.Recorder // nil: nothing is noted
	endReads context.CancelFunc
	recorded sync.WaitGroup
}

// Options of an attachment.
type Options struct {
	Who  string // what status calls this reader
	Fill bool   // have the daemon complete the image, also one that is started later

	// Proven says that the reader compares all that it reads with the Merkle root itself, so that no block need be sampled.
	Proven bool

	Record *Record // nil: what is read makes no profile

	Warn func(string) // is told what the user should know; may be nil

	// IOTimeout is how long the daemon may take for bytes that are missing; 0: a minute.
	IOTimeout time.Duration

	// Ensure sees to it that a daemon runs; nil: the client's own way, which starts one from this process.
	Ensure func(context.Context) error

	// Late opens the image before there is a lease, and takes that when a daemon gives it: for a reader that goes on in the place of
	// another one, and waits for no daemon to read what is there.
	Late bool
}

// sampled is how many blocks of a sealed image are compared with its Merkle root when it is opened.
const sampled = 16

// Attach opens an image that the daemon has opened, and holds a lease on it until Close. What a look at it finds damaged is healed first.
func Attach(ctx context.Context, c *daemon.Client, o *daemon.Opened, opt Options) (*Image, error) {
	im := &Image{c: c, who: opt.Who, fill: opt.Fill, wait: opt.IOTimeout, key: o.Key, ensure: opt.Ensure}
	if im.ensure == nil {
		im.ensure = c.Ensure
	}
	var lease io.ReadCloser
	if !opt.Late {
		var err error
		if lease, err = im.lease(ctx); err != nil {
			return nil, fmt.Errorf("taking a lease of image %.12s: %w", o.Key, err)
		}
	}
	lctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	im.cancel = cancel
	if err := im.openSound(ctx, o, opt); err != nil {
		cancel()
		if lease != nil {
			lease.Close()
		}
		return nil, err
	}
	if opt.Record != nil {
		im.startRecording(lctx, *opt.Record)
	}
	im.leased.Go(func() { im.keepLease(lctx, lease) })
	return im, nil
}

func (im *Image) open(dir string, proven bool) error {
	v, err := store.OpenView(dir)
	if err != nil {
		return err
	}
	blocks := sampled
	if proven {
		blocks = 0
	}
	if err := v.Sample(blocks); err != nil {
		v.Close()
		return err
	}
	info := v.Info
	if info.MetaOff < 0 || info.MetaOff > info.Size || info.MetaOff%store.BlockSize != 0 {
		v.Close()
		return fmt.Errorf("image %.12s: metadata at %d", info.Key, info.MetaOff)
	}
	m, err := unix.Mmap(int(v.File().Fd()), info.MetaOff, int(info.Size-info.MetaOff), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		v.Close()
		return fmt.Errorf("mapping metadata of image %.12s: %w", info.Key, err)
	}
	im.v, im.mapped = v, m
	im.meta, err = erofs.Open(&metaReader{m, info.MetaOff, v.File()}, info.Size)
	if err != nil {
		unix.Munmap(m)
		v.Close()
		return fmt.Errorf("opening image %.12s: %w", info.Key, err)
	}
	return nil
}

// metaReader reads the mapped metadata, and the superblock from the file.
type metaReader struct {
	m   []byte
	off int64
	f   *os.File
}

func (r *metaReader) ReadAt(p []byte, off int64) (int, error) {
	if off < r.off {
		return r.f.ReadAt(p, off)
	}
	off -= r.off
	if off >= int64(len(r.m)) {
		return 0, io.EOF
	}
	n := copy(p, r.m[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Key, Size, Meta and File tell what is read. The file is open for reading only.

func (im *Image) Key() store.Key     { return im.key }
func (im *Image) Size() int64        { return im.v.Info.Size }
func (im *Image) Meta() *erofs.Image { return im.meta }
func (im *Image) File() *os.File     { return im.v.File() }

// Complete tells whether nothing is missing any more.
func (im *Image) Complete() bool { return im.v.Complete() }

// Proof gives the dm-verity hash device of a sealed image, open for reading, the number of blocks it is over and the
// Merkle root in hex. The caller closes it.
func (im *Image) Proof() (tree *os.File, blocks int64, root string, err error) { return im.v.Proof() }

// ReadAt reads the image, waiting for what is missing until ctx ends.
func (im *Image) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n := int64(len(p))
	if n == 0 {
		return 0, nil
	}
	if off < 0 || off > im.Size()-n {
		return 0, io.EOF
	}
	im.reads.Touch(off, n)
	for at := 0; at < len(p); {
		rest, from := p[at:], off+int64(at)
		got := 0
		if !im.v.Has(from, int64(len(rest))) {
			var err error
			if got, err = im.need(ctx, rest, from); err != nil {
				return at, err
			}
		}
		if got == 0 {
			n, err := im.v.File().ReadAt(rest, from)
			return at + n, err
		}
		at += got
	}
	return len(p), nil
}

// ReadFd gives a descriptor and an offset where these bytes lie, if they are all present.
func (im *Image) ReadFd(off int64, n int) (fd uintptr, fdOff int64, ok bool) {
	if n <= 0 || off < 0 || off > im.Size()-int64(n) || !im.v.Has(off, int64(n)) {
		return 0, 0, false
	}
	im.reads.Touch(off, int64(n))
	return im.v.File().Fd(), off, true
}

// need waits until what p is to be read from is present, or reads the first of it, got bytes, where the cache takes no more. It waits for
// daemons no longer than one may take.
func (im *Image) need(ctx context.Context, p []byte, off int64) (got int, err error) {
	n := int64(len(p))
	last := time.Now().Add(cmp.Or(im.wait, time.Minute))
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		got, err := im.c.Need(ctx, im.key, daemon.NeedRequest{Off: off, N: n, Timeout: im.wait}, p)
		if err == nil && got == 0 && !im.v.Has(off, n) {
			return 0, fmt.Errorf("reading image %.12s: the daemon says bytes at %d are present, the map does not", im.key, off)
		}
		if err == nil || ctx.Err() != nil || !errors.Is(err, daemon.ErrGone) || time.Now().After(last) {
			return got, err
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return 0, context.Cause(ctx)
		case <-t.C:
		}
		if im.v.Has(off, n) {
			return 0, nil
		}
	}
}

// lease takes the lease. A daemon may have ended since it opened the image: then of the next one.
func (im *Image) lease(ctx context.Context) (io.ReadCloser, error) {
	lease, err := im.c.Lease(ctx, im.key, im.who, im.fill)
	if errors.Is(err, daemon.ErrGone) && ctx.Err() == nil {
		if err = im.ensure(ctx); err == nil {
			lease, err = im.c.Lease(ctx, im.key, im.who, im.fill)
		}
	}
	return lease, err
}

// keepLease holds the lease, if it isn't nil, and takes it anew from the daemon's successor when the daemon ends.
func (im *Image) keepLease(ctx context.Context, lease io.ReadCloser) {
	const pause = 50 * time.Millisecond
	for {
		var wait time.Duration
		if lease != nil {
			stop := context.AfterFunc(ctx, func() { lease.Close() })
			io.Copy(io.Discard, lease)
			stop()
			lease.Close()
			wait = pause
		}
		for ; ; wait = min(max(2*wait, pause), 5*time.Second) {
			t := time.NewTimer(wait)
			select {
			case <-ctx.Done():
				t.Stop()
				return
			case <-t.C:
			}
			// a complete image needs no daemon: it is only asked again when one runs anyway
			if !im.Complete() {
				_ = im.ensure(ctx) // the lease says whether there is one
			}
			l, err := im.c.Lease(ctx, im.key, im.who, im.fill)
			if err == nil {
				lease = l
				break
			}
		}
	}
}

// Close gives up the lease and closes the image. No other method may be running.
func (im *Image) Close() error {
	if im.reads != nil {
		im.endReads()
		im.recorded.Wait() // the lease still holds the image
	}
	im.cancel()
	im.leased.Wait()
	return errors.Join(unix.Munmap(im.mapped), im.v.Close())
}
