package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/erofs"
)

// onSameBase pushes an image with the layers of im and a small one of its own; it returns the repository, the bytes that it has for itself,
// and those of the layers that it shares.
func (b *bench) onSameBase(ctx context.Context, im *image, form string) (repo string, own, shared int64, err error) {
	img, err := readLayout(im.layout(form))
	if err != nil {
		return "", 0, 0, err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	text := []byte("a file of the second image\n")
	if err := w.WriteHeader(&tar.Header{Name: "second", Mode: 0o644, Size: int64(len(text))}); err != nil {
		return "", 0, 0, err
	}
	if _, err := w.Write(text); err != nil {
		return "", 0, 0, err
	}
	if err := w.Close(); err != nil {
		return "", 0, 0, err
	}
	top, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		return "", 0, 0, err
	}
	second, err := mutate.AppendLayers(img, top)
	if err != nil {
		return "", 0, 0, err
	}
	m, err := second.Manifest()
	if err != nil {
		return "", 0, 0, err
	}
	for _, l := range m.Layers[:len(m.Layers)-1] {
		shared += l.Size
	}
	size, err := second.Size()
	if err != nil {
		return "", 0, 0, err
	}
	// the packets' and answers' headers are its own as well
	own = size + m.Config.Size + m.Layers[len(m.Layers)-1].Size + 16<<10
	repo = im.name + ":" + form + "-second"
	return repo, own, shared, b.pushImage(ctx, second, repo)
}

// distinct is how many bytes the different contents of a tree's files have, each rounded up to 4 KiB.
func distinct(root string) (n int64, err error) {
	var top syscall.Stat_t
	if err := syscall.Lstat(root, &top); err != nil {
		return 0, err
	}
	inodes := map[uint64]bool{}
	contents := map[[sha256.Size]byte]bool{}
	buf := make([]byte, 1<<20)
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		if st.Dev != top.Dev {
			return fs.SkipDir
		}
		if !d.Type().IsRegular() || inodes[st.Ino] {
			return nil
		}
		inodes[st.Ino] = true
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.CopyBuffer(onlyWriter{h}, f, buf); err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
		if sum := [sha256.Size]byte(h.Sum(nil)); !contents[sum] {
			contents[sum] = true
			n += (st.Size + 4095) &^ 4095
		}
		return nil
	})
	return n, err
}

// onlyWriter hides what else a writer can, so that io.CopyBuffer uses its buffer.
type onlyWriter struct{ io.Writer }

// metadataOf is what an image file takes behind its contents, and its Merkle tree beside it, in bytes.
func metadataOf(file string) (n int64, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	im, err := erofs.Open(f, st.Size())
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", file, err)
	}
	from := im.Super().MetaOffset
	end, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
	if err != nil {
		return 0, fmt.Errorf("finding the end of the metadata of %s: %w", file, err)
	}
	var merkle unix.Stat_t
	if err := unix.Stat(filepath.Join(filepath.Dir(file), "merkle"), &merkle); err != nil {
		return 0, err
	}
	return end - from + merkle.Blocks*512, nil
}
