package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// compare reads a file of an image below dir and compares it with what is true: all of it, or a random part. The error says how it
// differs, or why it can't be read.
func compare(rnd *rand.Rand, dir string, f file) error {
	r, err := os.Open(filepath.Join(dir, f.name))
	if err != nil {
		return err
	}
	defer r.Close()
	off, end := int64(0), int64(len(f.content))
	if rnd != nil && end > 0 && rnd.IntN(2) == 0 {
		off = rnd.Int64N(end)
		end = off + rnd.Int64N(end-off) + 1
	}
	buf := make([]byte, 128<<10)
	for at := off; at < end; {
		n, err := r.ReadAt(buf[:min(int64(len(buf)), end-at)], at)
		if !bytes.Equal(buf[:n], f.content[at:at+int64(n)]) {
			return fmt.Errorf("%s has other bytes in [%d, %d) than the image", f.name, at, at+int64(n))
		}
		at += int64(n)
		if err != nil && !(errors.Is(err, io.EOF) && at == int64(len(f.content))) {
			return fmt.Errorf("reading %s at %d: %w", f.name, at, err)
		}
	}
	return nil
}

// compareAll reads all of an image: its files, and that there are no others.
func compareAll(ctx context.Context, dir string, im *image) error {
	seen := 0
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			seen++
		}
		return err
	})
	if err != nil {
		return err
	}
	if seen != len(im.files) {
		return fmt.Errorf("%d files, the image has %d", seen, len(im.files))
	}
	for _, f := range im.files {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := compare(nil, dir, f); err != nil {
			return err
		}
	}
	return nil
}

// reader reads files at random until ctx ends, and counts them in n. A request that a view is about to answer when it is killed may fail with
// EIO, which the kernel says: so much is counted, and the file is read again.
func (w *world) reader(ctx context.Context, rnd *rand.Rand, dir string, im *image, n *atomic.Int64) {
	for ctx.Err() == nil {
		f := im.files[rnd.IntN(len(im.files))]
		killed := w.views.Load()
		if err := compare(rnd, dir, f); err != nil {
			if errors.Is(err, unix.EIO) {
				rest(ctx, 2*time.Second) // it is counted when it is gone
				if w.views.Load() != killed {
					w.hurt.Add(1)
					continue
				}
			}
			if ctx.Err() == nil {
				w.fault("%s: %v", im.name, err)
			}
			return
		}
		n.Add(1)
		rest(ctx, time.Duration(rnd.Int64N(int64(10*time.Millisecond))))
	}
}
