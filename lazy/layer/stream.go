package layer

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/inflate"
	"github.com/pexfs/pex/lazy/tree"
)

// Stream reads a whole layer from r: gzip, zstd or plain tar, as its first bytes say. The contents of regular files go
// to spool one behind the other, each from a multiple of 4,096 bytes on and padded with zeros; blocks of zeros may be left
// out, so spool must read as zeros where it wasn't written. The SHA-256 of spool's block j goes to leaves at 32j. The index
// is returned only if the blob has d's digest and size, and its tar the diffID; else spool and leaves hold nothing of
// worth. The end of ctx ends Stream once a Read of r returns.
func Stream(ctx context.Context, r io.Reader, d v1.Descriptor, diffID v1.Hash, spool, leaves io.WriterAt, lim Limits) (*Index, error) {
	x := &indexer{ix: &Index{Source: FromTar}, w: newSpoolWriter(spool, leaves)}
	if err := readLayer(ctx, r, d, diffID, x, lim); err != nil {
		return nil, err
	}
	return x.ix, nil
}

// sink gets the entries of a tar in their order.
type sink interface {
	// entry gets an entry and the tar's header of it, which are valid only during the call. body is a regular file's content.
	entry(e *tree.Entry, h *tar.Header, body io.Reader) error
	// close is called once all entries were there.
	close() error
}

// readLayer reads a layer whole and gives its entries to a sink. Only after it has returned without an error is what the sink
// got what d and diffID promise.
func readLayer(ctx context.Context, r io.Reader, d v1.Descriptor, diffID v1.Hash, to sink, lim Limits) error {
	if d.Digest.Algorithm != "sha256" || diffID.Algorithm != "sha256" {
		return fmt.Errorf("digests %s and %s: only SHA-256 is supported", d.Digest, diffID)
	}
	lim = lim.withDefaults()
	// Four goroutines: one reads and hashes the blob, one inflates, one hashes the tar, and this one reads it and works on it.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	raw := &hashReader{r: r, h: sha256.New(), max: d.Size, progress: lim.Progress}
	in := newAhead(ctx, aheadSize, readFeed(raw))
	s := &streamer{to: to, sum: tally{lim: lim}}
	err := s.inflate(ctx, cancel, bufio.NewReaderSize(in, 64<<10))
	in.stop()
	if raw.err != nil { // says more than what a decoder made of it
		return raw.err
	}
	if err != nil {
		return err
	}
	if raw.n != d.Size {
		return fmt.Errorf("%w: the blob has %d bytes, its descriptor says %d", blob.ErrDigestMismatch, raw.n, d.Size)
	}
	if got := digest(raw.h); got != d.Digest {
		return fmt.Errorf("%w: the blob is %s, its descriptor says %s", blob.ErrDigestMismatch, got, d.Digest)
	}
	if got := s.diffID; got != diffID {
		return fmt.Errorf("%w: the diffID is %s, the image's configuration says %s", blob.ErrDigestMismatch, got, diffID)
	}
	return nil
}

// streamer reads a layer's blob.
type streamer struct {
	to     sink
	tar    *countReader
	diffID v1.Hash
	sum    tally
}

// inflate reads all of the blob. When it returns r isn't in use any more. cancel ends what feeds r.
func (s *streamer) inflate(ctx context.Context, cancel context.CancelFunc, r *bufio.Reader) error {
	plain, err := decompress(r)
	if err != nil {
		return err
	}
	defer plain.close()
	h := sha256.New()
	hash := func(p []byte) { _, _ = h.Write(p) } // never fails
	out := newAhead(ctx, plain.size, plain.feed, hash)
	defer func() { // before the decoder is closed
		cancel()
		out.stop()
	}()
	s.tar = &countReader{r: out, max: s.sum.lim.MaxSize}
	err = s.readTar()
	if err == nil {
		_, err = io.Copy(io.Discard, s.tar) // padding, and whatever follows the tar: the diffID covers it
	}
	if err == nil {
		err = s.to.close()
	}
	if s.tar.n > s.tar.max {
		err = fmt.Errorf("%w: it inflates to more than %d bytes", ErrLimit, s.tar.max)
	}
	if err != nil {
		return fmt.Errorf("at offset %d of the tar: %w", s.tar.n, err)
	}
	s.diffID = digest(h)
	_, err = io.Copy(io.Discard, r) // a decoder need not have seen the end
	return err
}

// countReader counts what is read through it, and ends behind max bytes.
type countReader struct {
	r      io.Reader
	n, max int64
}

func (c *countReader) Read(p []byte) (int, error) {
	if left := c.max - c.n; left < 0 {
		return 0, ErrLimit
	} else if int64(len(p)) > left {
		p = p[:left+1]
	}
	n, err := c.r.Read(p)
	if c.n += int64(n); c.n > c.max {
		return 0, ErrLimit
	}
	return n, err
}

// hashReader hashes and counts what is read through it, and refuses more than max bytes.
type hashReader struct {
	r        io.Reader
	h        hash.Hash
	n, max   int64
	err      error // the first error but for the end
	progress func(int64)
}

func (h *hashReader) Read(p []byte) (int, error) {
	if h.err != nil {
		return 0, h.err
	}
	n, err := h.r.Read(p)
	_, _ = h.h.Write(p[:n]) // never fails
	h.n += int64(n)
	if h.n > h.max {
		h.err = fmt.Errorf("%w: the blob has more than %d bytes", blob.ErrDigestMismatch, h.max)
		return 0, h.err
	}
	if n > 0 && h.progress != nil {
		h.progress(h.n)
	}
	if err != nil && err != io.EOF {
		h.err = err
	}
	return n, err
}

func digest(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

// The first bytes of zstd's frames, little-endian (RFC 8878, sections 3.1.1 and 3.1.2). Of the second the low four bits are free.
const (
	zstdFrame      = 0xFD2FB528
	zstdSkippable  = 0x184D2A50
	zstdSkipDigits = 0xf
)

// plain is what a blob decompresses to.
type plain struct {
	feed
	size  int // of the feed's buffers
	close func()
}

// decompress tells a stream's compression by its first bytes and undoes it.
func decompress(r *bufio.Reader) (plain, error) {
	m, err := r.Peek(4)
	if err != nil && err != io.EOF {
		return plain{}, err
	}
	if len(m) >= 2 && m[0] == 0x1f && m[1] == 0x8b {
		z := inflate.NewReader(r)
		return plain{named("gzip", func(_ context.Context, empty []byte) (mem, p []byte, err error) { return z.Next(empty) }), inflate.BufferSize, func() {}}, nil
	}
	if len(m) == 4 {
		if v := binary.LittleEndian.Uint32(m); v == zstdFrame || v&^zstdSkipDigits == zstdSkippable {
			z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
			if err != nil {
				return plain{}, fmt.Errorf("inflating zstd: %w", err)
			}
			return plain{named("zstd", readFeed(z)), aheadSize, z.Close}, nil
		}
	}
	return plain{readFeed(r), aheadSize, func() {}}, nil
}

// named says in the errors of a feed what was being read.
func named(what string, f feed) feed {
	return func(ctx context.Context, empty []byte) (mem, p []byte, err error) {
		mem, p, err = f(ctx, empty)
		if err != nil && err != io.EOF && ctx.Err() == nil {
			err = fmt.Errorf("inflating %s: %w", what, err)
		}
		return mem, p, err
	}
}
