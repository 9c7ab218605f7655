package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// profiled is a repository with an image and the profile of a workload beside it, one for each run of this program: what an earlier one
// has pushed must not be found.
func (b *bench) profiled(im *image, w workload) string {
	return fmt.Sprintf("%s-%s-%x:estargz", im.name, w.name, b.began.UnixNano())
}

// profile runs a workload on an image, which makes a profile, and pushes both.
func (b *bench) profile(ctx context.Context, im *image, w workload) (err error) {
	l, err := b.link(local)
	if err != nil {
		return err
	}
	if _, err := b.opens(ctx, im, w); err != nil { // for the figure
		return err
	}
	if err := b.push(ctx, im.layout("estargz"), b.profiled(im, w)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.clean()) }()
	p, err := b.newPex(l)
	if err != nil {
		return err
	}
	ref := p.ref(b.profiled(im, w))
	if err := p.mount(ctx, ref); err != nil {
		return err
	}
	if err := inside(ctx, l, p.dir, w.command); err != nil {
		return err
	}
	if err := p.umount(ctx); err != nil {
		return err
	}
	_, err = p.run(ctx, "profile", "push", "--insecure", "--all", ref)
	return err
}

// pexProfiled is pexCold of an image with a profile beside it, with nothing else fetched. Its figure is what came over the link by what
// the workload needs.
func (b *bench) pexProfiled(im *image, w workload) func(context.Context, *link) (*sample, error) {
	return func(ctx context.Context, l *link) (*sample, error) {
		s, err := b.pexCold(b.profiled(im, w), w.command, "--no-fill")(ctx, l)
		if err != nil {
			return nil, err
		}
		names, err := b.opens(ctx, im, w)
		if err != nil {
			return nil, err
		}
		least, err := needed(im.estargz, names)
		if err != nil {
			return nil, err
		}
		s.Figures[figureFetched] = float64(s.Received) / float64(least)
		return s, nil
	}
}

// needed is the compressed size of files of an image, and of the tables of contents that say where they are.
func needed(dir string, names []string) (n int64, err error) {
	img, err := readLayout(dir)
	if err != nil {
		return 0, err
	}
	m, err := img.Manifest()
	if err != nil {
		return 0, err
	}
	for i := len(m.Layers) - 1; i >= 0; i-- { // the topmost shows a file
		var in int64
		if in, names, err = neededOf(dir, m.Layers[i], names); err != nil {
			return 0, err
		}
		n += in
	}
	return n, nil
}

// neededOf is what is needed of one layer, and the names that it doesn't have.
func neededOf(dir string, d v1.Descriptor, names []string) (n int64, rest []string, err error) {
	f, err := blobFile(dir, d)
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	toc, _, err := estargz.OpenFooter(io.NewSectionReader(f, 0, d.Size))
	if err != nil {
		return 0, nil, fmt.Errorf("reading layer %s: %w", d.Digest, err)
	}
	r, err := estargz.Open(io.NewSectionReader(f, 0, d.Size))
	if err != nil {
		return 0, nil, fmt.Errorf("reading layer %s: %w", d.Digest, err)
	}
	n = d.Size - toc
	for _, name := range names {
		e, ok := r.Lookup(name)
		if !ok {
			rest = append(rest, name)
			continue
		}
		for off := int64(0); off < e.Size; {
			c, ok := r.ChunkEntryForOffset(e.Name, off) // of a hard link, the name of the first
			if !ok || c.ChunkSize <= 0 {
				return 0, nil, fmt.Errorf("reading layer %s: %s has no chunk at %d", d.Digest, name, off)
			}
			n += c.NextOffset() - c.Offset
			off += c.ChunkSize
		}
	}
	return n, rest, nil
}
