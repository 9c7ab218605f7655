package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	killRate = 5 << 20 // bytes a second that the registry sends, so that there are moments to kill in
	readers  = 3       // of each mount
)

// What a holder may lose: views that are killed too often take their mount with them, after 32 within a minute, or six in a row before
// they serve.
const (
	mostDeaths = 24
	mostInARow = 4 // within rowSpan
	rowSpan    = 5 * time.Second
)

// phases of an image's life here, in which something is killed.
var phases = []string{"mounting", "reading", "sealing", "checking", "unmounting", "removing", "evicting"}

// killing is one run of kills.
type killing struct {
	w       *world
	reg     *registry
	images  []*image
	refs    map[*image]string
	roots   map[*image]string // of a run that nobody disturbed
	victims []string
	reads   atomic.Int64
	seals   atomic.Int64
	removed atomic.Int64
	evicted atomic.Int64
	room    sync.RWMutex // held for writing while images are evicted, for reading by who needs one that isn't mounted

	died map[int][]time.Time // when a holder's views were killed, by its process

	mu    sync.Mutex        // guards what follows
	phase map[*image]string // now
	hit   map[string]int    // phases that an image was in when something was killed
}

func (k *killing) enter(im *image, phase string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.phase[im] = phase
}

// in tells whether an image is in a phase.
func (k *killing) in(phase string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Contains(slices.Collect(maps.Values(k.phase)), phase)
}

// kills kills the daemon (or what -victims names) while images are mounted, read, filled, sealed, checked, unmounted, removed and evicted, until it has
// been killed often enough. Each image then is completed, compared and checked.
func kills(ctx context.Context, o options, res *result) (err error) {
	rnd := rand.New(rand.NewPCG(o.seed, 1))
	images, err := someImages(rnd, o.scale)
	if err != nil {
		return err
	}
	k, end, err := newKilling(ctx, o, images, killRate)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end(res, err)) }()
	lives, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	for i, im := range images {
		wg.Go(func() { k.live(ctx, lives, rand.New(rand.NewPCG(o.seed, uint64(i)+100)), im) })
	}
	err = k.killAll(ctx, rnd, o.kills)
	stop()
	wg.Wait()
	if err != nil {
		return err
	}
	k.settle(ctx)
	c := k.reg.counted()
	if c.Repeated > c.InFlight {
		k.w.fault("the registry has sent %d bytes again, and %d at most were in flight at kills", c.Repeated, c.InFlight)
	}
	maps.Copy(res.Counts, map[string]any{
		"kills": k.w.kills.Load(), "kills of views": k.w.views.Load(), "reads failed at a view's kill": k.w.hurt.Load(), "files read": k.reads.Load(),
		"images sealed": k.seals.Load(), "images removed": k.removed.Load(), "images evicted": k.evicted.Load(), "phases hit": k.hit, "commands": k.w.begun,
		"commands ended by a kill": k.w.broke, "bytes sent": c.Sent, "bytes sent again": c.Repeated, "bytes in flight at kills": c.InFlight, "bytes in gaps": c.Gaps,
		"bytes of tables": c.Tables, "bytes sent for two images": c.Shared,
		"requests": c.Requests, "requests at once": c.Most,
	})
	return nil
}

// newKilling makes a world for these images, whose roots are known, and a registry that sends at a rate. end ends it, after an error or
// nil, and says in res what is wrong.
func newKilling(ctx context.Context, o options, images []*image, rate int64) (k *killing, end func(res *result, err error) error, err error) {
	reg, err := serve(rate)
	if err != nil {
		return nil, nil, err
	}
	k = &killing{reg: reg, images: images, refs: make(map[*image]string), victims: o.victims, died: make(map[int][]time.Time), phase: make(map[*image]string), hit: make(map[string]int)}
	for _, im := range images {
		k.refs[im] = reg.add(im)
	}
	if k.roots, err = undisturbed(ctx, o, images, k.refs); err == nil {
		k.w, err = newWorld(o.bin)
	}
	if err != nil {
		return nil, nil, errors.Join(err, reg.close())
	}
	for _, im := range images {
		reg.forget(im)
	}
	reg.mu.Lock()
	reg.counts = sends{}
	reg.mu.Unlock()
	return k, func(res *result, err error) error {
		res.Wrong = append(res.Wrong, k.w.faults()...)
		if len(res.Wrong) > 0 || err != nil {
			k.w.logs()
		}
		return errors.Join(k.w.end(), reg.close())
	}, nil
}

// undisturbed completes images, and gives their roots.
func undisturbed(ctx context.Context, o options, images []*image, refs map[*image]string) (roots map[*image]string, err error) {
	w, err := newWorld(o.bin)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.end()) }()
	roots = make(map[*image]string)
	for _, im := range images {
		dir := filepath.Join(w.dir, "mnt", im.name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
		if _, err := w.do(ctx, "mount", "-q", refs[im], dir); err != nil {
			return nil, err
		}
		if roots[im], err = w.seal(ctx, dir); err != nil {
			return nil, err
		}
		if err := compareAll(ctx, dir, im); err != nil {
			return nil, fmt.Errorf("%s, undisturbed: %w", im.name, err)
		}
		if _, err := w.do(ctx, "umount", dir); err != nil {
			return nil, err
		}
	}
	_, err = w.do(ctx, "daemon", "stop")
	return roots, err
}

// killAll kills n times, each time at a random moment after an image has come into a phase that is chosen at random.
func (k *killing) killAll(ctx context.Context, rnd *rand.Rand, n int) error {
	told := time.Now()
	for done := 0; done < n; {
		phase := phases[rnd.IntN(len(phases))]
		for range 400 { // or whatever they are in then
			if k.in(phase) || ctx.Err() != nil {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(time.Duration(rnd.Int64N(int64(250 * time.Millisecond))))
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		ok, err := k.kill(ctx, rnd, k.victims[rnd.IntN(len(k.victims))])
		if err != nil {
			return err
		}
		if ok {
			done++
		}
		if time.Since(told) > 5*time.Second {
			told = time.Now()
			c := k.reg.counted()
			fmt.Printf("kills: %d of %d, %d files read, %d sealed, %d removed, %d bytes sent again of %d in flight\n",
				done, n, k.reads.Load(), k.seals.Load(), k.removed.Load(), c.Repeated, c.InFlight)
		}
		if len(k.w.faults()) > 20 {
			return errors.New("too much is wrong")
		}
	}
	return nil
}

// kill kills one victim, if there is one.
func (k *killing) kill(ctx context.Context, rnd *rand.Rand, victim string) (ok bool, err error) {
	pid := 0
	switch victim {
	case "none":
		return true, nil
	case "daemon":
		pid = k.w.daemon()
	case "view":
		views := slices.DeleteFunc(k.w.of(victim), func(v process) bool { return k.bereaved(v.parent) })
		if len(views) > 0 {
			v := views[rnd.IntN(len(views))]
			pid = v.pid
			k.died[v.parent] = append(k.died[v.parent], time.Now())
			defer k.w.views.Add(1)
		}
	}
	if pid == 0 {
		// whoever needs one starts it; where nobody does, one more command
		_, err := k.w.do(ctx, "ls", "--json")
		return false, err
	}
	err = k.reg.during(func() error {
		k.mu.Lock()
		for _, p := range k.phase {
			k.hit[p]++
		}
		k.mu.Unlock()
		return k.w.kill(pid)
	})
	return err == nil, nil // it may have ended by itself
}

// bereaved tells whether a holder has lost so many views that it might give up.
func (k *killing) bereaved(holder int) bool {
	died, row := k.died[holder], 0
	for _, at := range died {
		if time.Since(at) < rowSpan {
			row++
		}
	}
	return row >= mostInARow || len(died) >= mostDeaths && time.Since(died[len(died)-mostDeaths]) < time.Minute
}

// live has an image mounted, read, and so on, over and over until lives ends.
func (k *killing) live(ctx, lives context.Context, rnd *rand.Rand, im *image) {
	ref, dir := k.refs[im], filepath.Join(k.w.dir, "mnt", im.name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		k.w.fault("%v", err)
		return
	}
	for lives.Err() == nil && ctx.Err() == nil {
		if err := k.cycle(ctx, lives, rnd, im, ref, dir); err != nil {
			if ctx.Err() == nil {
				k.w.fault("%s: %v", im.name, err)
			}
			return
		}
	}
	k.enter(im, "at rest")
}

// cycle mounts an image, reads it, and perhaps seals, checks and removes it.
func (k *killing) cycle(ctx, lives context.Context, rnd *rand.Rand, im *image, ref, dir string) error {
	k.enter(im, "mounting")
	args := []string{"mount", "-q", "--no-profile"}
	if rnd.IntN(4) == 0 {
		args = append(args, "--no-fill")
	}
	if err := k.mount(ctx, im, append(args, ref, dir)); err != nil {
		return err
	}
	k.enter(im, "reading")
	reading, done := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for range readers {
		seeded := rand.New(rand.NewPCG(rnd.Uint64(), 0))
		wg.Go(func() { k.w.reader(reading, seeded, dir, im, &k.reads) })
	}
	if rnd.IntN(3) > 0 {
		if rnd.IntN(2) == 0 {
			rest(lives, time.Duration(rnd.Int64N(int64(time.Second))))
		}
		k.enter(im, "sealing")
		root, err := k.w.seal(ctx, dir)
		if err != nil {
			done()
			wg.Wait()
			return err
		}
		k.seals.Add(1)
		if root != k.roots[im] {
			k.w.fault("%s: root %s, undisturbed it is %s", im.name, root, k.roots[im])
		}
		if rnd.IntN(3) == 0 {
			k.enter(im, "checking")
			if _, err := k.w.do(ctx, "fsck", "-n", dir); err != nil {
				k.w.fault("%s: %v", im.name, err)
			}
		}
	} else {
		rest(lives, time.Duration(rnd.Int64N(int64(2*time.Second))))
	}
	done()
	wg.Wait()
	k.enter(im, "unmounting")
	if err := k.umount(ctx, dir); err != nil {
		return err
	}
	switch rnd.IntN(4) {
	case 0, 1:
		k.enter(im, "removing")
		return k.remove(ctx, im, ref)
	case 2:
		k.enter(im, "evicting")
		return k.evict(ctx)
	}
	return nil
}

// mount mounts an image, all of which may be fetched again if it was evicted.
func (k *killing) mount(ctx context.Context, im *image, args []string) error {
	k.room.RLock()
	defer k.room.RUnlock()
	all, err := k.w.list(ctx)
	if err != nil {
		return err
	}
	if _, there := all[k.refs[im]]; !there {
		k.reg.forget(im)
	}
	_, err = k.w.do(ctx, args...)
	return err
}

// evict removes all images that nobody uses.
func (k *killing) evict(ctx context.Context) error {
	k.room.Lock()
	defer k.room.Unlock()
	out, err := k.w.do(ctx, "gc", "--all")
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "image ") {
			k.evicted.Add(1)
		}
	}
	return err
}

func rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// umount unmounts. One that a kill has ended may have done it before.
func (k *killing) umount(ctx context.Context, dir string) error {
	for {
		_, err := k.w.try(ctx, "umount", dir)
		var e *ended
		if err == nil || !errors.As(err, &e) {
			return err
		}
		if _, mounted := k.w.mounts()[dir]; !mounted && e.killed {
			return nil
		}
		if !e.killed {
			k.w.fault("%v", err)
			return err
		}
	}
}

// remove removes an image, once it isn't being filled.
func (k *killing) remove(ctx context.Context, im *image, ref string) error {
	k.room.RLock()
	defer k.room.RUnlock()
	for {
		_, err := k.w.try(ctx, "rm", ref)
		var e *ended
		switch {
		case err == nil:
			k.removed.Add(1)
			k.reg.forget(im)
			return nil
		case !errors.As(err, &e):
			return err
		}
		all, lerr := k.w.list(ctx)
		if lerr != nil {
			return lerr
		}
		if _, there := all[ref]; !there { // it was done before a kill, or the image was evicted
			k.removed.Add(1)
			k.reg.forget(im)
			return nil
		}
		switch {
		case strings.Contains(e.out, "being filled") || strings.Contains(e.out, "in use"):
			if root, err := k.w.seal(ctx, ref); err != nil {
				return err
			} else if root != k.roots[im] {
				k.w.fault("%s: root %s, undisturbed it is %s", im.name, root, k.roots[im])
			}
			rest(ctx, 20*time.Millisecond)
		case !e.killed:
			k.w.fault("%v", err)
			return err
		}
	}
}

// settle completes every image, compares and checks it, and sees that nothing else is left.
func (k *killing) settle(ctx context.Context) {
	for _, im := range k.images {
		if err := k.finish(ctx, im); err != nil {
			k.w.fault("%s, in the end: %v", im.name, err)
		}
	}
	k.w.settle(ctx)
}

func (k *killing) finish(ctx context.Context, im *image) error {
	dir := filepath.Join(k.w.dir, "mnt", im.name)
	if _, mounted := k.w.mounts()[dir]; mounted {
		return errors.New("it is still mounted")
	}
	if _, err := k.w.do(ctx, "mount", "-q", "--no-profile", k.refs[im], dir); err != nil {
		return err
	}
	root, err := k.w.seal(ctx, k.refs[im])
	if err != nil {
		return err
	}
	if root != k.roots[im] {
		return fmt.Errorf("root %s, undisturbed it is %s", root, k.roots[im])
	}
	if err := compareAll(ctx, dir, im); err != nil {
		return err
	}
	_, err = k.w.do(ctx, "umount", dir)
	return err
}
