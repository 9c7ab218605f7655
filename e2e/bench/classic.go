package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

// classic makes an EROFS image of the image in the registry by the tools that are there: skopeo, umoci, mkfs.erofs.
func (b *bench) classic(repo string) func(context.Context, *link) (*sample, error) {
	return func(ctx context.Context, l *link) (*sample, error) {
		state := filepath.Join(b.work, "classic")
		if err := os.Mkdir(state, 0o700); err != nil {
			return nil, err
		}
		m, err := b.begin(l)
		if err != nil {
			return nil, err
		}
		folder, tree := filepath.Join(state, "oci"), filepath.Join(state, "tree")
		for _, step := range []struct {
			phase string
			args  []string
		}{
			{"skopeo", []string{"skopeo", "copy", "-q", "--insecure-policy", "--src-tls-verify=false", "docker://" + l.server + ":" + port + "/" + repo, "oci:" + folder + ":latest"}},
			{"umoci", []string{"umoci", "raw", "unpack", "--image", folder + ":latest", tree}},
			{"mkfs.erofs", []string{"mkfs.erofs", filepath.Join(state, "image.erofs"), tree}},
		} {
			if err := m.phase(step.phase, func() error { _, err := output(ctx, l, step.args[0], step.args[1:]...); return err }); err != nil {
				return nil, err
			}
		}
		return m.done(state)
	}
}

// floor is what no way to a sealed image of gzip layers can do without: it inflates the layers and hashes what comes out, on one core, one
// after the other, with the files in memory.
func (b *bench) floor(im *image) func(context.Context, *link) (*sample, error) {
	return func(ctx context.Context, l *link) (*sample, error) {
		img, err := readLayout(im.gzip)
		if err != nil {
			return nil, err
		}
		m, err := img.Manifest()
		if err != nil {
			return nil, err
		}
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		began := time.Now()
		before, err := threadCPU()
		if err != nil {
			return nil, err
		}
		for _, d := range m.Layers {
			if err := inflate(ctx, filepath.Join(im.gzip, "blobs", d.Digest.Algorithm, d.Digest.Hex), d); err != nil {
				return nil, err
			}
		}
		wall := time.Since(began).Seconds()
		after, err := threadCPU()
		if err != nil {
			return nil, err
		}
		cpu := (after - before).Seconds()
		return &sample{Seconds: wall, CPU: cpu}, nil
	}
}

func inflate(ctx context.Context, file string, d v1.Descriptor) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("inflating layer %s: %w", d.Digest, err)
	}
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for ctx.Err() == nil {
		n, err := z.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("inflating layer %s: %w", d.Digest, err)
		}
	}
	return ctx.Err()
}

// threadCPU is the CPU time of the calling thread.
func threadCPU() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		return 0, err
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}
