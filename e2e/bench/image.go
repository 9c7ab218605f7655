package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// image is an image as OCI layouts: plain gzip, and the same as eStargz.
type image struct {
	name          string
	gzip, estargz string // layouts with one image each
	digest        string // of the eStargz form's manifest, in hex
	layers        int
	size          int64 // compressed layers as gzip, in bytes
	workloads     []workload
}

// workload is a shell command that is run with the image as its root.
type workload struct{ name, command string }

// String says what the image is like.
func (im *image) String() string {
	return fmt.Sprintf("%d layers, %.0f MB as gzip", im.layers, float64(im.size)/1e6)
}

func (im *image) layout(form string) string {
	if form == "gzip" {
		return im.gzip
	}
	return im.estargz
}

// repo is the repository and tag of a form in the registry.
func (im *image) repo(form string) string { return im.name + ":" + form }

//go:embed workloads
var builtin string

// findImages finds the demo image, and those of the folder of layouts that workloads are known for.
func findImages(o options) ([]*image, error) {
	table := builtin
	if o.table != "" {
		b, err := os.ReadFile(o.table)
		if err != nil {
			return nil, fmt.Errorf("reading workloads: %w", err)
		}
		table = string(b)
	}
	demo := filepath.Join(o.build, "image")
	images := []*image{{name: "demo", gzip: filepath.Join(demo, "demo"), estargz: filepath.Join(demo, "demo-estargz")}}
	if o.images != "" {
		found, err := filepath.Glob(filepath.Join(o.images, "*-estargz"))
		if err != nil {
			return nil, err
		}
		for _, e := range found {
			base := strings.TrimSuffix(e, "-estargz")
			if _, err := os.Stat(base + "-gzip"); err == nil {
				images = append(images, &image{name: filepath.Base(base), gzip: base + "-gzip", estargz: e})
			}
		}
	}
	known, err := parseWorkloads(table)
	if err != nil {
		return nil, err
	}
	var all []*image
	for _, im := range images {
		if im.workloads = known[im.name]; len(im.workloads) == 0 {
			fmt.Fprintf(os.Stderr, "bench: left out: image %s, for which no workload is known\n", im.name)
			continue
		}
		img, err := readLayout(im.gzip)
		if err != nil {
			return nil, err
		}
		m, err := img.Manifest()
		if err != nil {
			return nil, fmt.Errorf("reading the image of %s: %w", im.gzip, err)
		}
		im.layers = len(m.Layers)
		for _, l := range m.Layers {
			im.size += l.Size
		}
		lazy, err := readLayout(im.estargz)
		if err != nil {
			return nil, err
		}
		d, err := lazy.Digest()
		if err != nil {
			return nil, err
		}
		im.digest = d.Hex
		all = append(all, im)
	}
	return all, nil
}

// parseWorkloads reads lines of IMAGE NAME COMMAND. Empty ones, and those that begin with #, say nothing.
func parseWorkloads(table string) (map[string][]workload, error) {
	known := map[string][]workload{}
	for line := range strings.Lines(table) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Fields(line)
		if len(f) < 3 {
			return nil, fmt.Errorf("reading workloads: %q is not IMAGE NAME COMMAND", line)
		}
		command := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(strings.TrimPrefix(line, f[0])), f[1]))
		known[f[0]] = append(known[f[0]], workload{f[1], command})
	}
	return known, nil
}

// readLayout is the only image of a layout.
func readLayout(dir string) (v1.Image, error) {
	ix, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the layout %s: %w", dir, err)
	}
	m, err := ix.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("reading the layout %s: %w", dir, err)
	}
	if len(m.Manifests) != 1 || !m.Manifests[0].MediaType.IsImage() {
		return nil, fmt.Errorf("reading the layout %s: not one image", dir)
	}
	return ix.Image(m.Manifests[0].Digest)
}

// push brings a layout's image into the registry, and what the registry has of it into memory.
func (b *bench) push(ctx context.Context, dir, repo string) error {
	img, err := readLayout(dir)
	if err != nil {
		return err
	}
	return b.pushImage(ctx, img, repo)
}

func (b *bench) pushImage(ctx context.Context, img v1.Image, repo string) error {
	ref, err := name.ParseReference("127.0.0.1:"+port+"/"+repo, name.Insecure)
	if err != nil {
		return err
	}
	for wait := 10 * time.Millisecond; ; wait *= 2 {
		if err = remote.Write(ref, img, remote.WithContext(ctx)); err == nil || wait > 5*time.Second {
			break // the registry is up
		}
		time.Sleep(wait)
	}
	if err != nil {
		return fmt.Errorf("pushing %s: %w", repo, err)
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		d, err := l.Digest()
		if err != nil {
			return err
		}
		f, err := os.Open(filepath.Join(b.dir, "registry", "blobs", d.Algorithm, d.Hex))
		if err != nil {
			return fmt.Errorf("reading what the registry has of %s: %w", repo, err)
		}
		_, err = io.Copy(onlyWriter{io.Discard}, f)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("reading what the registry has of %s: %w", repo, err)
		}
	}
	return nil
}
