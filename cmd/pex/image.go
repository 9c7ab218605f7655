package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/cmd/internal/machine"
	"github.com/pexfs/pex/cmd/internal/view"
)

// openedImage is an image to run a program of.
type openedImage struct {
	ref      string // canonical
	state    string // how much of it is there, for people
	platform string // os/architecture
	config   v1.Config
	spec     json.RawMessage // for attachImage
}

// imageSpec is what a supervisor needs to read an image. It holds no credentials.
type imageSpec struct {
	CacheDir string        `json:"cacheDir"`
	Opened   daemon.Opened `json:"opened"`
	Fill     bool          `json:"fill"`
	Who      string        `json:"who"` // reads it, for people
}

// openImage has the daemon open an image.
func openImage(ctx context.Context, name string, o cli.OpenOptions) (*openedImage, error) {
	_, opened, err := cli.Open(ctx, program, name, o)
	if err != nil {
		return nil, err
	}
	config, err := v1.ParseConfigFile(strings.NewReader(string(opened.Config)))
	if err != nil {
		return nil, fmt.Errorf("reading configuration of %s: %w", opened.Ref, err)
	}
	spec := imageSpec{CacheDir: o.CacheDir, Opened: *opened, Fill: o.Fill, Who: fmt.Sprintf("run, process %d", os.Getpid())}
	spec.Opened.Config = nil
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("describing image %s: %w", opened.Ref, err)
	}
	return &openedImage{
		ref: opened.Ref, state: string(opened.State), platform: config.OS + "/" + config.Architecture,
		config: config.Config, spec: text,
	}, nil
}

// attachImage opens, in a supervisor, the image that openImage has described.
func attachImage(ctx context.Context, text json.RawMessage) (machine.Image, error) {
	var spec imageSpec
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, fmt.Errorf("reading description of image: %w", err)
	}
	c, err := daemon.NewClient(spec.CacheDir)
	if err != nil {
		return nil, err
	}
	image, err := view.Attach(ctx, c, &spec.Opened, view.Options{Who: spec.Who, Fill: spec.Fill})
	if err != nil {
		var e *daemon.Error
		if errors.As(err, &e) {
			err = &machine.EndedError{Ended: machine.Ended{Error: err.Error(), Hint: e.Hint}}
		}
		return nil, err
	}
	return image, nil
}
