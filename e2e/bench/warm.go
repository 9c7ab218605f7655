package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// warm is one image, complete, shown in several ways at once.
type warm struct {
	b      *bench
	l      *link
	im     *image
	p      *pex
	c      *containerd
	mounts map[string]kernelMount
}

// kernelMount is a file that the kernel mounts.
type kernelMount struct{ file, kind, dir string }

const (
	wayView   = "pexfs, FUSE"
	wayImage  = "pexfs, kernel"
	wayEROFS  = "kernel EROFS"
	wayExt4   = "kernel ext4"
	wayStargz = "stargz"
	wayFull   = "full pull"
)

// prepare completes the image in each way and reads it once.
func (w *warm) prepare(ctx context.Context, l *link) error {
	w.l = l
	var err error
	if w.p, err = w.b.newPex(l); err != nil {
		return err
	}
	if err := w.p.mount(ctx, w.p.ref(w.im.repo("estargz"))); err != nil {
		return err
	}
	if err := w.p.wait(ctx); err != nil {
		return err
	}
	image, _, err := w.p.image(ctx)
	if err != nil {
		return err
	}
	at := func(name string) string { return filepath.Join(w.b.work, name) }
	w.mounts = map[string]kernelMount{
		wayImage: {image, "erofs", at("mnt-image")},
		wayEROFS: {at("mkfs.erofs"), "erofs", at("mnt-erofs")},
		wayExt4:  {at("ext4"), "ext4", at("mnt-ext4")},
	}
	tree := at("tree")
	if _, err := output(ctx, l, "umoci", "raw", "unpack", "--image", w.im.gzip+":latest", tree); err != nil {
		return err
	}
	bytes, files, err := usage(tree)
	if err != nil {
		return err
	}
	makers := map[string][]string{
		wayEROFS: {"mkfs.erofs", at("mkfs.erofs"), tree},
		wayExt4:  {"mkfs.ext4", "-q", "-F", "-d", tree, "-N", fmt.Sprint(files*2 + 10000), at("ext4"), fmt.Sprintf("%dk", bytes>>10*5/4+(64<<10)+files)},
	}
	for way, m := range w.mounts {
		if args := makers[way]; args != nil {
			if _, err := output(ctx, l, args[0], args[1:]...); err != nil {
				fmt.Printf("%s is left out: %v\n", way, err)
				delete(w.mounts, way)
				continue
			}
		}
		if err := os.Mkdir(m.dir, 0o700); err != nil {
			return err
		}
		if err := w.remount(ctx, way); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(tree); err != nil {
		return err
	}
	if w.c, err = w.b.startContainerd(ctx, l, "stargz"); err != nil {
		return err
	}
	top, err := w.c.pull(ctx, "stargz", w.im.repo("estargz"))
	if err != nil {
		return err
	}
	if err := w.c.mount(ctx, "stargz", top); err != nil {
		return err
	}
	for _, way := range []string{wayView, wayImage, wayEROFS, wayExt4, wayStargz} {
		if _, err := w.tar(way)(ctx, l); err != nil {
			fmt.Printf("%s, the first reading: %v\n", way, err)
		}
	}
	return nil
}

// errNotMade says that a file system could not be made of the image.
var errNotMade = errors.New("it could not be made")

// root is the folder where a way shows the image.
func (w *warm) root(way string) (string, error) {
	switch way {
	case wayView:
		return w.p.dir, nil
	case wayStargz:
		return w.c.root, nil
	}
	m, ok := w.mounts[way]
	if !ok {
		return "", errNotMade
	}
	return m.dir, nil
}

// remount mounts a way's file system anew, so that the kernel has nothing of it in memory but what it has of the image file.
func (w *warm) remount(ctx context.Context, way string) error {
	if way == wayView {
		if err := w.p.umount(ctx); err != nil {
			return err
		}
		return w.p.mount(ctx, w.p.ref(w.im.repo("estargz")))
	}
	m, ok := w.mounts[way]
	if !ok {
		return errNotMade
	}
	if err := unix.Unmount(m.dir, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmounting %s: %w", m.dir, err)
	}
	if unix.Mount(m.file, m.dir, m.kind, unix.MS_RDONLY, "") == nil {
		return nil // Linux 6.12 and later mount EROFS from a file
	}
	_, err := output(ctx, w.l, "mount", "-t", m.kind, "-o", "ro,loop", m.file, m.dir)
	return err
}

// tar reads the whole tree by tar.
func (w *warm) tar(way string) func(context.Context, *link) (*sample, error) {
	return func(ctx context.Context, l *link) (*sample, error) {
		dir, err := w.root(way)
		if err != nil {
			return nil, err
		}
		m, err := w.b.begin(l)
		if err != nil {
			return nil, err
		}
		cmd := exec.CommandContext(ctx, "tar", "-C", dir, "--one-file-system", "-cf", "-", ".")
		out, err := cmd.StdoutPipe() // tar reads no file when it writes to /dev/null
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		n, err := io.CopyBuffer(onlyWriter{io.Discard}, out, make([]byte, 1<<20))
		if err = errors.Join(err, cmd.Wait()); err != nil {
			return nil, fmt.Errorf("reading %s by tar: %w", dir, err)
		}
		state := ""
		switch way {
		case wayView:
			state = w.p.cache
		case wayStargz:
			state = w.c.state
		}
		s, err := m.done(state)
		if err != nil {
			return nil, err
		}
		s.Figures["MB read"] = float64(n) / 1e6
		return w.own(way, s), nil
	}
}

// own leaves a sample the memory of the way's own processes: those of others run beside it.
func (w *warm) own(way string, s *sample) *sample {
	maps.DeleteFunc(s.Memory, func(name string, _ int64) bool {
		switch way {
		case wayView:
			return !strings.HasPrefix(name, "pexfs")
		case wayStargz:
			return strings.HasPrefix(name, "pexfs")
		}
		return true
	})
	return s
}

// reads is how many pages are read at random, of how many files.
const (
	reads     = 20000
	readFiles = 500
)

// random reads pages of the largest files at random, twice the same.
func (w *warm) random(way string) func(context.Context, *link) (*sample, error) {
	return func(ctx context.Context, l *link) (*sample, error) {
		dir, err := w.root(way)
		if err != nil {
			return nil, err
		}
		if err := w.remount(ctx, way); err != nil {
			return nil, err
		}
		files, sizes, err := largest(dir, readFiles)
		if err != nil {
			return nil, err
		}
		defer func() {
			for _, f := range files {
				_ = f.Close() // only read
			}
		}()
		m, err := w.b.begin(l)
		if err != nil {
			return nil, err
		}
		for _, pass := range []string{phaseFirst, phaseSecond} {
			r := rand.New(rand.NewPCG(1, 2))
			buf := make([]byte, 4096)
			t := time.Now()
			for range reads {
				i := r.IntN(len(files))
				if _, err := files[i].ReadAt(buf, r.Int64N(sizes[i]/4096)*4096); err != nil {
					return nil, err
				}
			}
			m.s.Phases[pass] = time.Since(t).Seconds()
		}
		s, err := m.done("")
		if err != nil {
			return nil, err
		}
		return w.own(way, s), nil
	}
}

// largest opens the n largest files of a tree, to be read at random.
func largest(root string, n int) (files []*os.File, sizes []int64, err error) {
	type file struct {
		path string
		size int64
	}
	var all []file
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Size() >= 4096 {
			all = append(all, file{path, info.Size()})
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	sort.Slice(all, func(i, j int) bool {
		return all[i].size > all[j].size || all[i].size == all[j].size && all[i].path[len(root):] < all[j].path[len(root):]
	})
	for _, x := range all[:min(n, len(all))] {
		f, err := os.Open(x.path)
		if err != nil {
			return files, sizes, err
		}
		files, sizes = append(files, f), append(sizes, x.size)
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
			return files, sizes, err
		}
	}
	return files, sizes, nil
}
