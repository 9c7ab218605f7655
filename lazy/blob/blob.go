// Package blob reads ranges of immutable blobs, whatever medium holds them.
package blob

import (
	"context"
	"errors"
	"io"
)

// Source is one immutable blob. Its methods may be called concurrently.
type Source interface {
	// Size is the blob's length in bytes, as its descriptor states it.
	Size() int64
	// Fetch opens the n bytes from off on; 0 <= off, 0 < n, off+n <= Size. The reader yields exactly n bytes or an
	// error; the caller closes it. The end of ctx ends the reader too.
	Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

var (
	// ErrDigestMismatch is wrapped by every error that says bytes are not what their digest promised.
	ErrDigestMismatch = errors.New("digest mismatch")
	// ErrRangeUnsupported is wrapped where a medium can't give a part of a blob without the whole.
	ErrRangeUnsupported = errors.New("range requests not supported")
)
