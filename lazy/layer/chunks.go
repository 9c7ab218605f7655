package layer

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/pexfs/pex/lazy/blob"
)

// ReadChunks reads chunks from r, which gives the blob's bytes from the offset base on, to the greatest End at least. chunks are
// sorted by Start, then Inner; several may lie in one member, and what lies between members is skipped. emit gets each chunk's number and its
// bytes, verified; they are valid only during the call. An error of emit ends the reading. A chunk that isn't what its
// digest says gives an error that wraps blob.ErrDigestMismatch.
func ReadChunks(ctx context.Context, f Format, r io.Reader, base int64, chunks []Chunk, emit func(i int, p []byte) error) error {
	m := &members{f: f, r: r, pos: base}
	defer m.close()
	var buf []byte
	for i, ch := range chunks {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if ch.Size <= 0 || ch.Size > maxChunk {
			return fmt.Errorf("chunk at %d has %d bytes", ch.Start, ch.Size)
		}
		if int64(cap(buf)) < ch.Size {
			buf = make([]byte, ch.Size)
		}
		p := buf[:ch.Size]
		if err := m.read(ch, p); err != nil {
			return fmt.Errorf("reading chunk at %d: %w", ch.Start, err)
		}
		if got := sha256.Sum256(p); got != ch.Digest {
			return fmt.Errorf("%w: chunk at %d+%d: got sha256:%x, want sha256:%x", blob.ErrDigestMismatch, ch.Start, ch.Inner, got, ch.Digest)
		}
		if err := emit(i, p); err != nil {
			return err
		}
	}
	return nil
}

// members reads the members of a blob one after the other.
type members struct {
	f     Format
	r     io.Reader
	pos   int64 // in the blob, of what r gives next
	lim   *io.LimitedReader
	br    *bufio.Reader
	gz    *gzip.Reader
	zs    *zstd.Decoder
	cur   io.Reader // the member being read
	start int64     // of it
	inner int64     // what of it was read
}

func (m *members) read(ch Chunk, p []byte) error {
	if m.cur == nil || m.start != ch.Start || m.inner > ch.Inner {
		if err := m.open(ch); err != nil {
			return err
		}
	}
	if _, err := io.CopyN(io.Discard, m.cur, ch.Inner-m.inner); err != nil {
		return unexpected(err)
	}
	m.inner = ch.Inner
	n, err := io.ReadFull(m.cur, p)
	m.inner += int64(n)
	return unexpected(err)
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// open goes to the member of ch.
func (m *members) open(ch Chunk) error {
	if m.lim != nil { // what the last member left unread
		if _, err := io.Copy(io.Discard, m.lim); err != nil {
			return err
		}
	}
	if ch.Start < m.pos || ch.End <= ch.Start {
		return fmt.Errorf("member %d to %d is not behind %d", ch.Start, ch.End, m.pos)
	}
	if _, err := io.CopyN(io.Discard, m.r, ch.Start-m.pos); err != nil {
		return unexpected(err)
	}
	m.lim = &io.LimitedReader{R: m.r, N: ch.End - ch.Start}
	m.pos, m.start, m.inner = ch.End, ch.Start, 0
	if m.br == nil {
		m.br = bufio.NewReaderSize(m.lim, 64<<10)
	} else {
		m.br.Reset(m.lim)
	}
	var err error
	switch m.f {
	case Gzip:
		if m.gz == nil {
			m.gz, err = gzip.NewReader(m.br)
		} else {
			err = m.gz.Reset(m.br)
		}
		m.cur = m.gz
	case Zstd:
		if m.zs == nil {
			m.zs, err = zstd.NewReader(m.br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		} else {
			err = m.zs.Reset(m.br)
		}
		m.cur = m.zs
	default:
		m.cur = m.br
	}
	return unexpected(err)
}

func (m *members) close() {
	if m.zs != nil {
		m.zs.Close()
	}
}
