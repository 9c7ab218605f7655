package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/cmd/internal/machine"
	"github.com/pexfs/pex/lazy/store"
)

// early is a machine that is started before its image has been opened.
type early struct {
	root  machine.Root
	image *imageSpec // what it is likely to be; nil: the machine is told later
}

// early says how to start a machine before its image has been opened. Where that can't be its root depends on what is
// not known yet.
func (r *oneRun) early() (early, bool) {
	root := r.flags.root
	if root == machine.Auto || root == machine.Pmem {
		if spec, complete := cached(r.name, r.flags.image); complete {
			return early{root, &spec}, true
		}
	}
	return early{root: machine.Block}, root == machine.Auto || root == machine.Block
}

// prepare opens the image and makes the boot set, side by side; it completes an image that is to be proven. Where that is
// possible a machine is started, too, and boots meanwhile: it is not nil then, even with an error. It knows its image if
// given says so.
func (r *oneRun) prepare(ctx context.Context) (image *openedImage, set *bootSet, m *machine.Attachment, given bool, err error) {
	f := r.flags
	if _, err := store.Open(f.image.CacheDir); err != nil { // before anything is put into a folder of another version
		return nil, nil, nil, false, err
	}
	e, ok := r.early()
	root := f.root
	if ok {
		root = e.root
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		image, err = openImage(gctx, r.name, f.image, f.root == machine.Verity)
		return err
	})
	g.Go(func() (err error) {
		if set, err = makeBootSet(f.image.CacheDir, f.kernel, root); err == nil && ok {
			m, err = r.startEarly(gctx, set, e)
		}
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, nil, m, false, err
	}
	if image.platform != machinePlatform {
		return nil, nil, m, false, hinted{
			fmt.Errorf("running %s: it is for %s, and machines are %s", image.ref, image.platform, machinePlatform),
			"choose another one of the image's platforms with --platform " + machinePlatform,
		}
	}
	if f.root == machine.Verity {
		err = image.seal(ctx, f.image)
	}
	if m != nil && e.image != nil && e.image.Opened.Key != image.key {
		m.Close() // the name stands for another image now
		m = nil
	}
	return image, set, m, e.image != nil, err
}

func (r *oneRun) startEarly(ctx context.Context, set *bootSet, e early) (*machine.Attachment, error) {
	if e.image == nil {
		return r.start(set, e.root, r.name, nil)
	}
	if _, err := daemon.Connect(ctx, e.image.CacheDir); err != nil {
		return nil, err
	}
	text, err := e.image.text()
	if err != nil {
		return nil, err
	}
	return r.start(set, e.root, e.image.Opened.Ref, text)
}

// start starts the machine; image may be nil for one that gets it later.
func (r *oneRun) start(set *bootSet, root machine.Root, ref string, image json.RawMessage) (*machine.Attachment, error) {
	f := r.flags
	r.times.start = machine.Now()
	return machine.Start([]string{superviseName}, machine.Config{
		Image: image, Ref: ref, Root: root, IOTimeout: f.ioTimeout, VCPUs: f.vcpus, Memory: f.memory,
		Kernel: set.kernel, Initrds: set.initrds,
		Verdicts: filepath.Join(f.image.CacheDir, "kvm-failures"),
	}, warn)
}

// machinePlatform is what the programs of machines are built for.
const machinePlatform = "linux/amd64"
