package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// soak has images mounted, read, sealed, checked, unmounted and removed for a while, through restarts and kills of the daemon and a registry
// that is silent for moments. The last third of the time is without restarts, so that one daemon lives through it. It ends with the
// counts it began with.
func soak(ctx context.Context, o options, res *result) (err error) {
	rnd := rand.New(rand.NewPCG(o.seed, 2))
	images, err := someImages(rnd, o.scale)
	if err != nil {
		return err
	}
	k, end, err := newKilling(ctx, o, images, 16<<20)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end(res, err)) }()

	began := time.Now()
	restarts, err := k.soakFor(ctx, rnd, began.Add(o.soak*2/3), true)
	if err != nil {
		return err
	}
	if err := k.empty(ctx); err != nil {
		return err
	}
	before, files, err := k.counts(ctx)
	if err != nil {
		return err
	}
	if _, err := k.soakFor(ctx, rnd, began.Add(o.soak), false); err != nil {
		return err
	}
	if err := k.empty(ctx); err != nil {
		return err
	}
	after, filesAfter, err := k.counts(ctx)
	if err != nil {
		return err
	}
	const (
		spare     = 16 + 4 // descriptors: connections to the registry at rest, and to commands that have just ended
		spareGo   = 2 * spare
		spareAnon = 48 << 20 // bytes: what the collector has not given back
	)
	if after.Files > before.Files || after.Descriptors > before.Descriptors+spare || after.Anon > before.Anon+spareAnon {
		k.w.fault("the daemon has %d files open, %d descriptors and %d KiB of memory, it began with %d, %d and %d",
			after.Files, after.Descriptors, after.Anon>>10, before.Files, before.Descriptors, before.Anon>>10)
	}
	if after.Goroutines > before.Goroutines+spareGo {
		k.w.fault("the daemon has %d goroutines, it began with %d", after.Goroutines, before.Goroutines)
	}
	if n := len(k.w.processes()); n != 1 {
		k.w.fault("%d processes in the end, want the daemon: %v", n, k.w.processes())
	}
	if n := len(k.w.mounts()); n != 0 {
		k.w.fault("%d mounts in the end", n)
	}
	if filesAfter != files {
		k.w.fault("%d files in the cache in the end, it began with %d", filesAfter, files)
	}
	maps.Copy(res.Counts, map[string]any{
		"restarts": restarts, "kills": k.w.kills.Load(), "files read": k.reads.Load(), "images sealed": k.seals.Load(), "images removed": k.removed.Load(), "images evicted": k.evicted.Load(), "commands": k.w.begun,
		"daemon: files open, before and after": []int64{before.Files, after.Files}, "daemon: descriptors, before and after": []int64{before.Descriptors, after.Descriptors}, "daemon: MiB of memory, before and after": []int64{before.Anon >> 20, after.Anon >> 20},
		"daemon: goroutines, before and after": []int64{before.Goroutines, after.Goroutines}, "daemon: threads, before and after": []int64{before.Threads, after.Threads}, "files in the cache, before and after": []int{files, filesAfter},
	})
	return nil
}

// soakFor lets images live until a time, with faults.
func (k *killing) soakFor(ctx context.Context, rnd *rand.Rand, until time.Time, restart bool) (restarts int, err error) {
	lives, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	for _, im := range k.images {
		seeded := rand.New(rand.NewPCG(rnd.Uint64(), 0))
		wg.Go(func() { k.live(ctx, lives, seeded, im) })
	}
	told := time.Now()
	for time.Now().Before(until) && ctx.Err() == nil && err == nil && len(k.w.faults()) == 0 {
		rest(ctx, time.Duration(rnd.Int64N(int64(2*time.Second))))
		switch n := rnd.IntN(6); {
		case n == 0:
			k.reg.hush(true)
			rest(ctx, time.Duration(rnd.Int64N(int64(time.Second))))
			k.reg.hush(false)
		case n == 1 && restart:
			_, err = k.kill(ctx, rnd, "daemon")
		case n == 2 && restart:
			err = k.restart(ctx)
			restarts++
		default:
			_, err = k.w.do(ctx, "status", "--json")
		}
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			fmt.Printf("soak: %v left, %d files read, %d sealed, %d removed, %d restarts, %d kills\n",
				time.Until(until).Round(time.Second), k.reads.Load(), k.seals.Load(), k.removed.Load(), restarts, k.w.kills.Load())
		}
	}
	stop()
	wg.Wait()
	return restarts, err
}

// restart stops the daemon: whoever needs one starts another. Commands under way may be told that it is gone.
func (k *killing) restart(ctx context.Context) error {
	k.w.kills.Add(1) // as far as these go
	_, err := k.w.try(ctx, "daemon", "stop")
	k.w.kills.Add(1)
	var e *ended
	if errors.As(err, &e) && strings.Contains(e.out, "no daemon answers") { // there is none
		return nil
	}
	return err
}

// empty removes all images.
func (k *killing) empty(ctx context.Context) error {
	all, err := k.w.list(ctx)
	if err != nil {
		return err
	}
	for im, ref := range k.refs {
		if _, there := all[ref]; !there {
			continue
		}
		if err := k.remove(ctx, im, ref); err != nil {
			return err
		}
	}
	return nil
}

// counts are what the daemon takes, once it is at rest, and how many files its cache has but for those that are kept by digest for ever.
func (k *killing) counts(ctx context.Context) (u usage, files int, err error) {
	if _, err := k.w.do(ctx, "ls", "--json"); err != nil {
		return u, 0, err
	}
	rest(ctx, 6*time.Second) // spare connections and what was fetched early are let go of
	for _, d := range []string{"images", "layers", "tmp"} {
		err := filepath.WalkDir(filepath.Join(k.w.cache, d), func(_ string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				files++
			}
			return err
		})
		if err != nil {
			return u, 0, err
		}
	}
	if u, err = usageOf(k.w.daemon()); err != nil {
		return u, 0, err
	}
	u.Goroutines, err = k.w.goroutines(ctx)
	return u, files, err
}
