package main

import "context"

// row is something that is measured: several ways to the same, over one link.
type row struct {
	name   string // IMAGE/WHAT@LINK
	link   linkSpec
	runs   int                                // at least
	once   func(context.Context, *link) error // before the first run; then state is kept between the runs. Else each starts with nothing
	ways   []way
	ratios []ratio
	goals  map[string]float64 // what figures may be at most
}

// way is one of a row's.
type way struct {
	name   string
	run    func(context.Context, *link) (*sample, error)
	before func(context.Context) error // or nil: makes what the runs need
}

// ratio compares two ways of a row, or parts of one, in the same round.
type ratio struct {
	of, by           string
	ofPhase, byPhase string  // "" is the whole
	goal             float64 // at most; 0 if there is none
}

// Phases that are compared.
const (
	phaseLastByte = "until the last byte"
	phaseMount    = "first mount"
	phaseFirst    = "first pass"
	phaseSecond   = "second pass"
)

// Figures, as the results name them.
const (
	figureDisk     = "disk / (distinct contents + metadata + Merkle tree)"
	figureFiles    = "files of the image and its layers"
	figureDaemon   = "daemon's peak anonymous / (64 MiB + 250 B an inode)"
	figureView     = "view's peak anonymous / 24 MiB"
	figureRequests = "requests of the second mount"
	figureFetched  = "bytes received / (compressed files that the workload opens + tables of contents)"
	figureBase     = "bytes fetched of the shared layers / their size"
)

const (
	wayPex       = "pexfs"
	wayBuild     = "pexfs image build"
	wayProfiled  = "pexfs, profile found beside the image"
	wayOptimised = "stargz, optimised image"
	wayFloor     = "inflate + SHA-256, one core"
	wayClassic   = "skopeo + umoci + mkfs.erofs"
	oneCore      = "one core"
	twoCores     = "two cores"
)

// large is from how many bytes on an image is a large one, which a cold start must not wait for.
const large = 500e6

// rows are all there are, those first that matter most.
func (b *bench) rows(images []*image) []*row {
	var all []*row
	for _, im := range images {
		all = append(all, b.starts(im, slow()[0])...)
		all = append(all, b.finishing(im)...)
		all = append(all, b.cached(im)...)
		all = append(all, b.reading(im)...)
	}
	for _, spec := range append(slow()[1:], local) {
		for _, im := range images {
			all = append(all, b.starts(im, spec)...)
		}
	}
	return all
}

// starts are cold starts over a link.
func (b *bench) starts(im *image, spec linkSpec) []*row {
	var all []*row
	full := ratio{of: wayPex, by: wayFull}
	if im.size >= large {
		full.goal = 0.1
	}
	for _, w := range im.workloads {
		all = append(all, &row{
			name: im.name + "/cold-" + w.name + "@" + spec.name, link: spec,
			ways: []way{
				{name: wayPex, run: b.pexCold(im.repo("estargz"), w.command)},
				{name: wayProfiled, run: b.pexProfiled(im, w), before: func(ctx context.Context) error { return b.profile(ctx, im, w) }},
				{name: wayStargz, run: b.containerdCold("stargz", im.repo("estargz"), w.command)},
				{name: wayOptimised, run: b.containerdCold("stargz", im.optimised(w), w.command), before: func(ctx context.Context) error { return b.optimise(ctx, im, w) }},
				{name: wayFull, run: b.containerdCold("overlayfs", im.repo("gzip"), w.command)},
			},
			ratios: []ratio{{of: wayPex, by: wayStargz, goal: 0.5}, {of: wayProfiled, by: wayOptimised, goal: 0.7}, full},
			goals:  map[string]float64{figureFetched: 1.3},
		})
	}
	all = append(all, &row{
		name: im.name + "/gzip-" + im.workloads[0].name + "@" + spec.name, link: spec,
		ways: []way{
			{name: wayPex, run: b.pexCold(im.repo("gzip"), im.workloads[0].command)},
			{name: wayFull, run: b.containerdCold("overlayfs", im.repo("gzip"), im.workloads[0].command)},
		},
		ratios: []ratio{{of: wayPex, by: wayFull, goal: 0.7}},
	}, &row{
		name: im.name + "/gzip-complete@" + spec.name, link: spec,
		ways:   []way{{name: wayPex, run: b.pexSeal(im.repo("gzip"), "")}},
		ratios: []ratio{{of: wayPex, by: wayPex, byPhase: phaseLastByte, goal: 1.1}},
	})
	for _, w := range []workload{{"ls", "ls -lR /usr"}, {"find", "find / -xdev"}} {
		all = append(all, &row{
			name: im.name + "/cold-" + w.name + "@" + spec.name, link: spec,
			ways: []way{
				{name: wayPex, run: b.pexCold(im.repo("estargz"), w.command)},
				{name: wayStargz, run: b.containerdCold("stargz", im.repo("estargz"), w.command)},
			},
			ratios: []ratio{{of: wayPex, by: wayStargz, goal: 0.3}},
		})
	}
	return all
}

// finishing are the ways to a complete image, without a slow link.
func (b *bench) finishing(im *image) []*row {
	folder := "oci:" + im.estargz + ":latest"
	goals := map[string]float64{figureDisk: 1.03, figureFiles: 9, figureDaemon: 1, figureView: 1}
	return []*row{{
		name: im.name + "/gzip-sealed@" + local.name, link: local,
		ways: []way{
			{name: wayPex, run: b.pexSeal(im.repo("gzip"), "")},
			{name: wayBuild, run: b.pexBuild(im.repo("gzip"))},
			{name: wayFloor, run: b.floor(im)},
			{name: wayClassic, run: b.classic(im.repo("gzip"))},
		},
		ratios: []ratio{{of: wayPex, by: wayFloor, goal: 0.8}, {of: wayPex, by: wayClassic, goal: 0.5}, {of: wayBuild, by: wayFloor}},
		goals:  goals,
	}, {
		name: im.name + "/estargz-sealed@" + local.name, link: local,
		ways: []way{
			{name: oneCore, run: b.pexSeal(folder, "0")},
			{name: twoCores, run: b.pexSeal(folder, "0,1")},
		},
		ratios: []ratio{{of: twoCores, by: oneCore, goal: 1 / 1.7}},
		goals:  goals,
	}}
}

// cached are mounts of what the cache has, or has parts of.
func (b *bench) cached(im *image) []*row {
	spec := slow()[0]
	return []*row{{
		name: im.name + "/again@" + spec.name, link: spec,
		ways:   []way{{name: wayPex, run: b.pexAgain(im.repo("estargz"))}},
		ratios: []ratio{{of: wayPex, by: wayPex, byPhase: phaseMount, goal: 0.1}},
		goals:  map[string]float64{figureRequests: 1},
	}, {
		name: im.name + "/second-image-estargz@" + spec.name, link: spec,
		ways:  []way{{name: wayPex, run: b.pexSecond(im, "estargz")}},
		goals: map[string]float64{figureBase: 0},
	}, {
		name: im.name + "/second-image-gzip@" + spec.name, link: spec,
		ways:  []way{{name: wayPex, run: b.pexSecond(im, "gzip")}},
		goals: map[string]float64{figureBase: 0},
	}}
}

// reading are reads of complete images.
func (b *bench) reading(im *image) []*row {
	all := func(run func(*warm, string) func(context.Context, *link) (*sample, error), w *warm, ways ...string) (made []way) {
		for _, name := range ways {
			made = append(made, way{name: name, run: run(w, name)})
		}
		return made
	}
	tar, random := &warm{b: b, im: im}, &warm{b: b, im: im}
	return []*row{{
		name: im.name + "/warm-tar", link: local, runs: 11, once: tar.prepare,
		ways:   all((*warm).tar, tar, wayView, wayImage, wayEROFS, wayExt4, wayStargz),
		ratios: []ratio{{of: wayView, by: wayEROFS, goal: 1.5}, {of: wayImage, by: wayEROFS, goal: 1.1}, {of: wayView, by: wayImage}, {of: wayView, by: wayExt4}, {of: wayStargz, by: wayEROFS}},
	}, {
		name: im.name + "/warm-random-4k", link: local, runs: 11, once: random.prepare,
		ways: all((*warm).random, random, wayView, wayImage, wayEROFS),
		ratios: []ratio{
			{of: wayView, by: wayEROFS, ofPhase: phaseSecond, byPhase: phaseSecond, goal: 1.1},
			{of: wayView, by: wayImage, ofPhase: phaseSecond, byPhase: phaseSecond},
			{of: wayView, by: wayEROFS, ofPhase: phaseFirst, byPhase: phaseFirst},
			{of: wayView, by: wayImage, ofPhase: phaseFirst, byPhase: phaseFirst},
		},
	}}
}
