package layer

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/inflate"
)

// ReadChunks reads chunks from r, which gives the blob's bytes from the offset base on, as far as the last chunk needs. chunks are sorted
// by Start, then by Inner; several may lie in one member, and what lies between members is skipped. emit gets each chunk's place in
// chunks and its bytes, verified; they are valid only during the call. An error of emit ends the reading and is returned as it is. A
// chunk that isn't what its digest says, or whose member doesn't inflate, gives an error that wraps blob.ErrDigestMismatch; an error of
// r does not.
func ReadChunks(ctx context.Context, f Format, r io.Reader, base int64, chunks []Chunk, emit func(i int, p []byte) error) error {
	var c ChunkReader
	defer c.Close()
	return c.Read(ctx, f, r, base, chunks, emit)
}

// ChunkReader does what ReadChunks does and keeps its decoders and its buffer, which is as big as the largest chunk read, for
// the next call. The zero value is ready. One goroutine may use it at a time. Close it in the end.
type ChunkReader struct {
	buf []byte
	br  *bufio.Reader
	gz  *inflate.Reader
	zs  *zstd.Decoder
}

// Close gives up what the reader keeps.
func (c *ChunkReader) Close() {
	if c.zs != nil {
		c.zs.Close()
	}
	*c = ChunkReader{}
}

// Read is ReadChunks.
func (c *ChunkReader) Read(ctx context.Context, f Format, r io.Reader, base int64, chunks []Chunk, emit func(i int, p []byte) error) error {
	m := members{format: f, dec: c, r: &blobReader{Reader: r}, pos: base}
	for i := range chunks {
		ch := &chunks[i]
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if ch.Size <= 0 || ch.Size > maxChunk {
			return fmt.Errorf("reading chunk at offset %d: it has %d bytes", ch.Start, ch.Size)
		}
		if i == 0 || !sameBytes(ch, &chunks[i-1]) {
			if err := c.read(&m, ch); err != nil {
				return err
			}
		}
		if err := emit(i, c.buf[:ch.Size:ch.Size]); err != nil {
			return err
		}
	}
	return nil
}

// read leaves a chunk's bytes in c.buf.
func (c *ChunkReader) read(m *members, ch *Chunk) error {
	if int64(cap(c.buf)) < ch.Size {
		c.buf = make([]byte, ch.Size)
	}
	p := c.buf[:ch.Size]
	if err := m.read(ch, p); err != nil {
		return fmt.Errorf("reading chunk at offset %d: %w", ch.Start, err)
	}
	if got := sha256.Sum256(p); got != ch.Digest {
		return fmt.Errorf("%w: chunk of %d bytes at offset %d, %d within: got sha256:%x, want sha256:%x",
			blob.ErrDigestMismatch, ch.Size, ch.Start, ch.Inner, got, ch.Digest)
	}
	return nil
}

// members inflates the members of a blob one after the other.
type members struct {
	format Format
	dec    *ChunkReader
	r      *blobReader
	pos    int64            // in the blob, of what r gives when lim has ended
	lim    io.LimitedReader // the compressed bytes of the member being read
	cur    io.Reader        // what it inflates to, or nil
	start  int64            // of it
	inner  int64            // what of cur was read
}

func (m *members) read(ch *Chunk, p []byte) error {
	if m.cur == nil || m.start != ch.Start || m.inner > ch.Inner {
		if err := m.open(ch); err != nil {
			return err
		}
	}
	n, err := io.CopyN(io.Discard, m.cur, ch.Inner-m.inner)
	m.inner += n
	if err != nil {
		return m.inflating(err)
	}
	k, err := io.ReadFull(m.cur, p)
	m.inner += int64(k)
	return m.inflating(err)
}

// inflating is err, of a decoder, with its cause: either the blob could not be read on, or its bytes are wrong.
func (m *members) inflating(err error) error {
	if err == nil || m.r.err != nil && (m.r.err != io.EOF || m.lim.N > 0) {
		return unexpected(err)
	}
	return fmt.Errorf("%w: %w", blob.ErrDigestMismatch, unexpected(err))
}

// blobReader remembers the error that reading a blob ended with.
type blobReader struct {
	io.Reader
	err error
}

func (b *blobReader) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil {
		b.err = err
	}
	return n, err
}

// unexpected is err, or io.ErrUnexpectedEOF where something has ended that should go on.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// open goes to the member of ch.
func (m *members) open(ch *Chunk) error {
	m.cur = nil
	if m.lim.N > 0 { // what the last member left unread
		if _, err := io.CopyN(io.Discard, m.r, m.lim.N); err != nil {
			return unexpected(err)
		}
		m.lim.N = 0
	}
	if ch.Start < m.pos || ch.End <= ch.Start || ch.Inner < 0 {
		return fmt.Errorf("its member, %d to %d, does not lie behind %d", ch.Start, ch.End, m.pos)
	}
	if _, err := io.CopyN(io.Discard, m.r, ch.Start-m.pos); err != nil {
		return unexpected(err)
	}
	m.lim = io.LimitedReader{R: m.r, N: ch.End - ch.Start}
	m.pos, m.start, m.inner = ch.End, ch.Start, 0
	var err error
	m.cur, err = m.dec.inflate(m.format, &m.lim)
	return m.inflating(err)
}

// inflate makes a reader of what r inflates to. It ends the use of the one before.
func (c *ChunkReader) inflate(f Format, r io.Reader) (io.Reader, error) {
	if f == Gzip {
		if c.gz == nil {
			c.gz = new(inflate.Reader)
		}
		c.gz.Reset(r)
		return c.gz, nil
	}
	if c.br == nil {
		c.br = bufio.NewReaderSize(r, 64<<10)
	} else {
		c.br.Reset(r)
	}
	if f == Zstd {
		var err error
		if c.zs == nil {
			c.zs, err = zstd.NewReader(c.br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxWindow(maxWindow), zstd.IgnoreChecksum(true)) // chunks have digests
		} else {
			err = c.zs.Reset(c.br)
		}
		return c.zs, err
	}
	return c.br, nil
}
