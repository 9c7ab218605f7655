package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// What a daemon may take, whatever is asked of it: memory beside what is mapped of images, descriptors, and requests of one registry at
// once, of each kind that there is: ranges, tables of contents, and pieces of layers that are read whole.
const (
	mostAnon        = 256 << 20
	mostDescriptors = 2000
	mostRanges      = 32
	mostTables      = 16
	mostPieces      = 6 * 4
)

// load is a world under load, with a registry of its own.
type load struct {
	w    *world
	reg  *registry
	refs map[*image]string
	dirs atomic.Int64
}

// loaded runs f in a world with these images in a registry that sends at a rate, while it watches the daemon, and sees that what it took
// is within bounds and nothing is left over.
func loaded(ctx context.Context, o options, res *result, rate int64, images []*image, f func(context.Context, *load) error) (err error) {
	l := &load{refs: make(map[*image]string)}
	if l.reg, err = serve(rate); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.reg.close()) }()
	for _, im := range images {
		l.refs[im] = l.reg.add(im)
	}
	if l.w, err = newWorld(o.bin); err != nil {
		return err
	}
	defer func() {
		res.Wrong = append(res.Wrong, l.w.faults()...)
		if len(res.Wrong) > 0 || err != nil {
			l.w.logs()
		}
		err = errors.Join(err, l.w.end())
	}()
	watching, done := context.WithCancel(ctx)
	var most usage
	var wg sync.WaitGroup
	wg.Go(func() {
		for watching.Err() == nil {
			if u, err := usageOf(l.w.daemon()); err == nil {
				most.most(u)
			}
			rest(watching, 100*time.Millisecond)
		}
	})
	err = f(ctx, l)
	done()
	wg.Wait()
	if err != nil {
		return err
	}
	l.w.settle(ctx)
	c := l.reg.counted()
	maps.Copy(res.Counts, map[string]any{
		"daemon: MiB of memory, at most": most.Anon >> 20, "daemon: descriptors, at most": most.Descriptors, "daemon: threads, at most": most.Threads,
		"bytes sent": c.Sent, "bytes sent again": c.Repeated, "requests": c.Requests, "requests at once": c.Most,
	})
	if most.Anon > mostAnon || most.Descriptors > mostDescriptors {
		l.w.fault("the daemon took %d MiB and %d descriptors", most.Anon>>20, most.Descriptors)
	}
	if c.Most > mostRanges+mostTables+mostPieces {
		l.w.fault("%d requests of one registry at once", c.Most)
	}
	if c.Repeated > 0 {
		l.w.fault("the registry has sent %d bytes again", c.Repeated)
	}
	return nil
}

// mount mounts an image on a folder of its own.
func (l *load) mount(ctx context.Context, im *image, flags ...string) (dir string, err error) {
	dir = filepath.Join(l.w.dir, "mnt", fmt.Sprintf("%d", l.dirs.Add(1)))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	_, err = l.w.do(ctx, append(append([]string{"mount", "-q", "--no-profile"}, flags...), l.refs[im], dir)...)
	return dir, err
}

// umountAll unmounts all that is mounted.
func (l *load) umountAll(ctx context.Context) error {
	for dir := range l.w.mounts() {
		if _, err := l.w.do(ctx, "umount", dir); err != nil {
			return err
		}
	}
	return nil
}

// together runs f n times at once, and gives the first error.
func together(n int, f func(i int) error) error {
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// mounts has one daemon serve many mounts of several images that are all begun at once, and read while they fill.
func mounts(ctx context.Context, o options, res *result) error {
	images, err := someImages(rand.New(rand.NewPCG(o.seed, 1)), o.scale)
	if err != nil {
		return err
	}
	n := o.mounts
	res.Counts["mounts"] = n
	return loaded(ctx, o, res, 0, images, func(ctx context.Context, l *load) error {
		err := together(n, func(i int) error {
			im := images[i%len(images)]
			dir, err := l.mount(ctx, im)
			if err != nil {
				return err
			}
			return compareAll(ctx, dir, im)
		})
		if err != nil {
			return err
		}
		if have := len(l.w.mounts()); have != n {
			l.w.fault("%d mounts of %d are there", have, n)
		}
		for _, im := range images {
			if _, err := l.w.seal(ctx, l.refs[im]); err != nil {
				return err
			}
		}
		return l.umountAll(ctx)
	})
}

// manyReaders has very many read cold images at once.
func manyReaders(ctx context.Context, o options, res *result) error {
	images, err := someImages(rand.New(rand.NewPCG(o.seed, 1)), 2*o.scale)
	if err != nil {
		return err
	}
	images = images[:2] // the lazy ones
	res.Counts["readers"] = o.readers
	return loaded(ctx, o, res, 8<<20, images, func(ctx context.Context, l *load) error {
		dirs := make([]string, 8)
		err := together(len(dirs), func(i int) (err error) {
			dirs[i], err = l.mount(ctx, images[i%2], "--no-fill")
			return err
		})
		if err != nil {
			return err
		}
		err = together(o.readers, func(i int) error {
			rnd := rand.New(rand.NewPCG(o.seed, uint64(i)))
			d := rnd.IntN(len(dirs))
			im := images[d%2]
			for range 3 {
				if err := compare(rnd, dirs[d], im.files[rnd.IntN(len(im.files))]); err != nil {
					return err
				}
			}
			return nil
		})
		return errors.Join(err, l.umountAll(ctx))
	})
}

// manyLayers mounts images of very many layers: with tables of contents, and without.
func manyLayers(ctx context.Context, o options, res *result) error {
	rnd := rand.New(rand.NewPCG(o.seed, 1))
	var images []*image
	for _, lazy := range []bool{true, false} {
		var all []*lay
		for i := range o.layers {
			l, err := makeLayer(rnd, fmt.Sprintf("%v%d", lazy, i), 2, 8<<10, lazy)
			if err != nil {
				return err
			}
			all = append(all, l)
		}
		im, err := makeImage(fmt.Sprintf("layers-%v", lazy), all...)
		if err != nil {
			return err
		}
		images = append(images, im)
	}
	res.Counts["layers"] = o.layers
	return loaded(ctx, o, res, 0, images, func(ctx context.Context, l *load) error {
		err := together(len(images), func(i int) error {
			dir, err := l.mount(ctx, images[i])
			if err != nil {
				return err
			}
			if err := compareAll(ctx, dir, images[i]); err != nil {
				return err
			}
			_, err = l.w.seal(ctx, l.refs[images[i]])
			return err
		})
		return errors.Join(err, l.umountAll(ctx))
	})
}

// fair has one image that very many read, and another that one does: what he waits for is little of what the others get meanwhile. A
// third, whose registry is silent, holds up neither.
func fair(ctx context.Context, o options, res *result) error {
	images, err := someImages(rand.New(rand.NewPCG(o.seed, 1)), 4*o.scale)
	if err != nil {
		return err
	}
	busy, lone := images[0], images[1]
	silent, err := serve(0)
	if err != nil {
		return err
	}
	defer silent.close()
	return loaded(ctx, o, res, 4<<20, []*image{busy, lone}, func(ctx context.Context, l *load) error {
		l.refs[images[4]] = silent.add(images[4])
		stuck, err := l.mount(ctx, images[4], "--no-fill")
		if err != nil {
			return err
		}
		silent.hush(true)
		a, err := l.mount(ctx, busy, "--no-fill")
		if err != nil {
			return err
		}
		b, err := l.mount(ctx, lone, "--no-fill")
		if err != nil {
			return err
		}
		var all sync.WaitGroup
		all.Go(func() { // until its registry answers
			for _, f := range images[4].files {
				if err := compare(nil, stuck, f); err != nil && ctx.Err() == nil {
					l.w.fault("the image of a registry that was silent: %v", err)
					return
				}
			}
		})
		readers := o.readers / 2
		for i := range readers {
			rnd := rand.New(rand.NewPCG(o.seed, uint64(i)))
			all.Go(func() {
				for range 3 {
					if err := compare(rnd, a, busy.files[rnd.IntN(len(busy.files))]); err != nil {
						l.w.fault("the busy image: %v", err)
						return
					}
				}
			})
		}
		for l.reg.counted().Sent < int64(len(busy.blobs[0].bytes))/8 && ctx.Err() == nil {
			rest(ctx, 10*time.Millisecond)
		}
		before := l.reg.counted().Sent
		small := lone.files[len(lone.files)-1] // of the layer that only this image has
		if err := compare(nil, b, small); err != nil {
			return err
		}
		meanwhile := l.reg.counted().Sent - before
		res.Counts["bytes sent while the lone reader waited"] = meanwhile
		res.Counts["readers of the busy image"] = readers
		if _, err := l.w.seal(ctx, l.refs[lone]); err != nil {
			return err
		}
		silent.hush(false)
		all.Wait()
		if limit := int64(mostRanges*(128<<10) + 2<<20); meanwhile > limit {
			l.w.fault("the registry has sent %d bytes while the lone reader waited for %d", meanwhile, len(small.content))
		}
		return l.umountAll(ctx)
	})
}
