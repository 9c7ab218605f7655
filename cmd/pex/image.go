package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/cmd/internal/machine"
	"github.com/pexfs/pex/cmd/internal/view"
	"github.com/pexfs/pex/lazy/profile"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/store"
)

// openedImage is an image to run a program of.
type openedImage struct {
	client   *daemon.Client
	key      store.Key
	ref      string // canonical
	state    store.State
	platform string // os/architecture
	config   v1.Config
	spec     imageSpec
}

// imageSpec is what a supervisor needs to read an image. It holds no credentials.
type imageSpec struct {
	CacheDir string        `json:"cacheDir"`
	Opened   daemon.Opened `json:"opened"`
	Fill     bool          `json:"fill"`
	Proven   bool          `json:"proven"` // by the guest, block by block
	Who      string        `json:"who"`    // reads it, for people
	Record   *view.Record  `json:"record"` // nil: what is read makes no profile
}

func newSpec(opened daemon.Opened, o cli.OpenOptions, proven bool) imageSpec {
	return imageSpec{CacheDir: o.CacheDir, Opened: opened, Fill: o.Fill, Proven: proven, Who: fmt.Sprintf("run, process %d", os.Getpid())}
}

// text is the spec for attachImage.
func (s imageSpec) text() (json.RawMessage, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("describing image %s: %w", s.Opened.Ref, err)
	}
	return b, nil
}

// openImage has the daemon open an image, which the machine proves itself if proven
// is set.
func openImage(ctx context.Context, name string, o cli.OpenOptions, proven bool) (*openedImage, error) {
	c, opened, err := cli.Open(ctx, program, name, o)
	if err != nil {
		return nil, err
	}
	config, err := v1.ParseConfigFile(strings.NewReader(string(opened.Config)))
	if err != nil {
		return nil, fmt.Errorf("reading configuration of %s: %w", opened.Ref, err)
	}
	spec := newSpec(*opened, o, proven)
	spec.Opened.Config = nil
	return &openedImage{
		client: c, key: opened.Key, ref: opened.Ref, state: opened.State, platform: config.OS + "/" + config.Architecture,
		config: config.Config, spec: spec,
	}, nil
}

// replay has the profile of a command replayed, and what the machine reads recorded. A run doesn't fail for want of a hint.
func (i *openedImage) replay(ctx context.Context, argv []string) {
	r := view.Record{Manifest: i.spec.Opened.Manifest, Name: profile.Name(argv)}
	_ = i.client.Replay(ctx, i.key, daemon.ReplayRequest{Manifest: r.Manifest, Name: r.Name})
	i.spec.Record = &r
}

// seal completes an image and waits until its Merkle root is known.
func (i *openedImage) seal(ctx context.Context, o cli.OpenOptions) error {
	if i.state == store.Sealed {
		return nil
	}
	if !o.Fill {
		return hinted{
			fmt.Errorf("running %s with --verity: the image is not complete, and --no-fill keeps it so", i.ref),
			"leave --no-fill out, or complete the image with `pexfs wait`",
		}
	}
	if !o.Quiet {
		fmt.Fprintf(os.Stderr, "%s: completing %s: --verity needs all of it\n", program, i.ref)
	}
	p := cli.NewProgress(program, os.Stderr, o.Quiet)
	defer p.End()
	if err := i.client.Wait(ctx, i.key, p.Image); err != nil {
		return fmt.Errorf("completing %s: %w", i.ref, err)
	}
	i.state = store.Sealed
	return nil
}

// fetched is how many bytes of the image's contents the daemon has fetched since it started; 0 if it doesn't say.
func (i *openedImage) fetched(ctx context.Context) int64 {
	// Also of a run that was interrupted.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	st, err := i.client.Status(ctx)
	if err != nil {
		return 0
	}
	for _, im := range st.Images {
		if im.Key == i.key {
			return im.Fetched
		}
	}
	return 0
}

// cached gives the image that a reference stood for when it was last opened, if all of it is in the cache, without asking
// anyone: it may stand for another by now.
func cached(name string, o cli.OpenOptions) (imageSpec, bool) {
	r, err := ref.Parse(name)
	if err == nil {
		r, err = r.Abs()
	}
	p := ref.DefaultPlatform()
	if err == nil && o.Platform != "" {
		p, err = ref.ParsePlatform(o.Platform)
	}
	if err != nil {
		return imageSpec{}, false
	}
	st, err := daemon.OpenStore(o.CacheDir)
	if err != nil {
		return imageSpec{}, false
	}
	last, err := st.Ref(r.String(), p.String())
	if err != nil {
		return imageSpec{}, false
	}
	record, err := st.Record(last.Manifest)
	if err != nil {
		return imageSpec{}, false
	}
	dir := st.ImageDir(record.Image)
	v, err := store.OpenView(dir)
	if err != nil {
		return imageSpec{}, false
	}
	defer v.Close()
	return newSpec(daemon.Opened{Key: record.Image, Ref: r.String(), Manifest: last.Manifest, Dir: dir, State: v.Info.State}, o, false), v.Complete()
}

// readable is an image as a supervisor reads it.
type readable struct{ *view.Image }

// ReadAt says which errors no waiting mends.
func (r readable) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := r.Image.ReadAt(ctx, p, off)
	var e *daemon.Error
	if errors.As(err, &e) && e.Code == daemon.CodeCorrupt {
		err = fmt.Errorf("%w: %w", machine.ErrCorrupt, err)
	}
	return n, err
}

// attachImage opens, in a supervisor, the image that openImage has described.
func attachImage(ctx context.Context, text json.RawMessage, warn func(string)) (machine.Image, error) {
	var spec imageSpec
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, fmt.Errorf("reading description of image: %w", err)
	}
	c, err := daemon.NewClient(spec.CacheDir)
	if err != nil {
		return nil, err
	}
	image, err := view.Attach(ctx, c, &spec.Opened, view.Options{Who: spec.Who, Fill: spec.Fill, Proven: spec.Proven, Record: spec.Record, Warn: warn})
	if err != nil {
		return nil, &machine.EndedError{Ended: machine.Ended{Error: err.Error(), Hint: cli.Hint(err)}}
	}
	return readable{image}, nil
}
