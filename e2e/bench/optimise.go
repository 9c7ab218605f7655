package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

// unfinished are the folders of images that are being made.
const unfinished = "optimising*"

// optimised is the repository of an image that is optimised for a workload.
func (im *image) optimised(w workload) string { return im.name + ":optimised-" + w.name }

// optimise pushes an image as the peer optimises it for a workload: in the layer that shows them, the files that the workload opens come first,
// in its order, before a landmark up to which the peer fetches at once. What it makes is kept.
func (b *bench) optimise(ctx context.Context, im *image, w workload) error {
	kept := filepath.Join(b.dir, "optimised", im.id(w))
	if _, err := os.Stat(kept); err != nil {
		fmt.Printf("  making the image that is optimised for %s\n", w.name)
		names, err := b.opens(ctx, im, w)
		if err != nil {
			return err
		}
		if err := b.rebuild(ctx, im, names, kept); err != nil {
			return fmt.Errorf("optimising %s for %s: %w", im.name, w.name, err)
		}
	}
	return b.push(ctx, kept, im.optimised(w))
}

// opens names the files that a workload opens, without a leading slash, in order. They are kept for later.
func (b *bench) opens(ctx context.Context, im *image, w workload) (names []string, err error) {
	kept := filepath.Join(b.dir, "optimised", im.id(w)+".files")
	if list, err := os.ReadFile(kept); err == nil {
		return strings.Split(string(list), "\x00"), nil
	}
	if names, err = b.record(ctx, im, w); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(kept), 0o755); err != nil {
		return nil, err
	}
	return names, os.WriteFile(kept, []byte(strings.Join(names, "\x00")), 0o644)
}

// id names an image and a workload.
func (im *image) id(w workload) string {
	sum := sha256.Sum256([]byte(w.command))
	return fmt.Sprintf("%s-%.12s-%s-%x", im.name, im.digest, w.name, sum[:4])
}

// record runs a workload and names the files that it opens.
func (b *bench) record(ctx context.Context, im *image, w workload) (names []string, err error) {
	l, err := b.link(local)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.clean()) }()
	p, err := b.newPex(l)
	if err != nil {
		return nil, err
	}
	if err := p.mount(ctx, p.ref(im.repo("estargz"))); err != nil {
		return nil, err
	}
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_UNLIMITED_QUEUE, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watching what %s opens: %w", w.name, err)
	}
	defer unix.Close(fd)
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_MOUNT, unix.FAN_OPEN, unix.AT_FDCWD, p.dir); err != nil {
		return nil, fmt.Errorf("watching what %s opens: %w", w.name, err)
	}
	if err := inside(ctx, l, p.dir, w.command); err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EAGAIN || n == 0 {
			return names, nil
		} else if err != nil {
			return nil, fmt.Errorf("reading what %s opens: %w", w.name, err)
		}
		for e := buf[:n]; len(e) >= unix.FAN_EVENT_METADATA_LEN; { // struct fanotify_event_metadata, fanotify(7)
			size, file := binary.NativeEndian.Uint32(e), int(int32(binary.NativeEndian.Uint32(e[16:])))
			if size < unix.FAN_EVENT_METADATA_LEN || int(size) > len(e) {
				break
			}
			e = e[size:]
			name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file))
			var st unix.Stat_t
			err = errors.Join(err, unix.Fstat(file, &st), unix.Close(file))
			name, ok := strings.CutPrefix(name, p.dir+"/")
			if err == nil && ok && st.Mode&unix.S_IFMT == unix.S_IFREG && !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
}

// rebuild makes the layers that show the named files anew from their gzip form, and the layout dir of them and of the other layers.
func (b *bench) rebuild(ctx context.Context, im *image, names []string, dir string) (err error) {
	tmp, err := os.MkdirTemp(b.dir, unfinished)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	gz, err := readLayout(im.gzip)
	if err != nil {
		return err
	}
	plain, err := gz.Manifest()
	if err != nil {
		return err
	}
	lazy, err := readLayout(im.estargz)
	if err != nil {
		return err
	}
	m, err := lazy.Manifest()
	if err != nil {
		return err
	}
	layers, err := lazy.Layers()
	if err != nil {
		return err
	}
	if len(plain.Layers) != len(layers) {
		return fmt.Errorf("%d layers as gzip, %d as eStargz", len(plain.Layers), len(layers))
	}
	add := make([]mutate.Addendum, len(layers))
	for i := len(layers) - 1; i >= 0; i-- {
		d := m.Layers[i]
		add[i] = mutate.Addendum{Layer: layers[i], Annotations: d.Annotations, MediaType: d.MediaType}
		var here []string
		if here, names, err = shown(im.estargz, d, names); err != nil {
			return err
		}
		if len(here) > 0 {
			if add[i].Layer, add[i].Annotations, err = prioritise(ctx, im.gzip, plain.Layers[i], here, filepath.Join(tmp, fmt.Sprint(i))); err != nil {
				return err
			}
		}
	}
	config, err := lazy.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.RootFS.DiffIDs, config.History = nil, nil
	img, err := mutate.ConfigFile(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), config)
	if err != nil {
		return err
	}
	if img, err = mutate.Append(img, add...); err != nil {
		return err
	}
	made, err := layout.Write(filepath.Join(tmp, "oci"), empty.Index)
	if err != nil {
		return err
	}
	if err := made.AppendImage(img); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	return os.Rename(filepath.Join(tmp, "oci"), dir)
}

func blobFile(layout string, d v1.Descriptor) (*os.File, error) {
	return os.Open(filepath.Join(layout, "blobs", d.Digest.Algorithm, d.Digest.Hex))
}

// shown splits names into those that an eStargz layer has and the rest.
func shown(dir string, d v1.Descriptor, names []string) (here, rest []string, err error) {
	f, err := blobFile(dir, d)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	r, err := estargz.Open(io.NewSectionReader(f, 0, d.Size))
	if err != nil {
		return nil, nil, fmt.Errorf("reading layer %s: %w", d.Digest, err)
	}
	for _, n := range names {
		if _, ok := r.Lookup(n); ok {
			here = append(here, n)
		} else {
			rest = append(rest, n)
		}
	}
	return here, rest, nil
}

// prioritise makes an eStargz layer of a gzip layer, in the file to.
func prioritise(ctx context.Context, dir string, d v1.Descriptor, names []string, to string) (v1.Layer, map[string]string, error) {
	f, err := blobFile(dir, d)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	plain, err := os.Create(to + ".tar")
	if err != nil {
		return nil, nil, err
	}
	defer plain.Close()
	if err := withParents(plain, f, names); err != nil {
		return nil, nil, fmt.Errorf("reading layer %s: %w", d.Digest, err)
	}
	size, err := plain.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, nil, err
	}
	blob, err := estargz.Build(io.NewSectionReader(plain, 0, size), estargz.WithPrioritizedFiles(names), estargz.WithCompressionLevel(6), estargz.WithContext(ctx))
	if err != nil {
		return nil, nil, fmt.Errorf("converting layer %s: %w", d.Digest, err)
	}
	out, err := os.Create(to)
	if err == nil {
		_, err = io.Copy(out, blob)
		err = errors.Join(err, out.Close())
	}
	if err = errors.Join(err, blob.Close()); err != nil {
		return nil, nil, err
	}
	l, err := tarball.LayerFromFile(to, tarball.WithMediaType(types.OCILayer))
	return l, map[string]string{estargz.TOCJSONDigestAnnotation: blob.TOCDigest().String()}, err
}

// withParents writes a layer's tar with an entry for each folder that the named files are in: some tools leave out those that a lower layer
// has, and the peer's library refuses to move a file whose folder it can't move with it.
func withParents(w io.Writer, layer io.Reader, names []string) error {
	parents := map[string]bool{}
	for _, n := range names {
		for d := path.Dir(n); d != "."; d = path.Dir(d) {
			parents[d] = true
		}
	}
	z, err := gzip.NewReader(layer)
	if err != nil {
		return err
	}
	out := tar.NewWriter(w)
	// what the layer itself says of a folder comes later, and counts
	for _, d := range slices.Sorted(maps.Keys(parents)) {
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}); err != nil {
			return err
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	_, err = io.Copy(w, z)
	return err
}
