package kernel

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/klauspost/compress/zstd"
)

const (
	zstdMagic = "\x28\xb5\x2f\xfd"
	xzMagic   = "\xfd7zXZ\x00"
	gzipMagic = "\x1f\x8b"
)

// ErrXZ is wrapped by errors that say the program xz is needed and not installed.
var ErrXZ = errors.New("the program xz is not installed")

// decompress unpacks b as its magic number says, b itself if that says nothing. More than limit bytes are an error.
func decompress(b []byte, limit int64) ([]byte, error) {
	switch {
	case bytes.HasPrefix(b, []byte(gzipMagic)):
		r, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		return readAll(r, limit)
	case bytes.HasPrefix(b, []byte(zstdMagic)):
		r, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return readAll(r, limit)
	case bytes.HasPrefix(b, []byte(xzMagic)):
		return unxz(b, limit)
	}
	return b, nil
}

// unxz has the program xz unpack b.
func unxz(b []byte, limit int64) ([]byte, error) {
	path, err := exec.LookPath("xz")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrXZ, err)
	}
	cmd := exec.Command(path, "--decompress", "--stdout", "--quiet")
	cmd.Stdin = bytes.NewReader(b)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("running xz: %w", err)
	}
	data, err := readAll(out, limit)
	out.Close()
	if werr := cmd.Wait(); err == nil && werr != nil {
		err = fmt.Errorf("running xz: %w: %s", werr, strings.TrimSpace(stderr.String()))
	}
	return data, err
}
