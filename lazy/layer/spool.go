package layer

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
)

const (
	blockSize = 4096
	hashSize  = sha256.Size
	spoolBuf  = 1 << 20
	holeMin   = 64 << 10 // fewer zeros than that are written
)

// spoolWriter writes contents behind each other, from block to block, in big pieces, and the hashes of their blocks.
type spoolWriter struct {
	data, leaves io.WriterAt
	buf          []byte // what wasn't written yet; always whole blocks but within content
	sums         []byte // of buf's blocks up to hashed
	zero         []bool // which of these are zeros
	hashed       int    // bytes
	off          int64  // of buf in the spool
	end          int64  // of what was written to data
	key          hash.Hash
	zeros        [blockSize]byte
	zerosSum     [hashSize]byte
}

func newSpoolWriter(data, leaves io.WriterAt) *spoolWriter {
	w := &spoolWriter{data: data, leaves: leaves, key: sha256.New()}
	w.zerosSum = sha256.Sum256(w.zeros[:])
	return w
}

// content copies a content of size bytes from r.
func (w *spoolWriter) content(r io.Reader, size int64) (Content, error) {
	c := Content{Size: size, SpoolOff: w.off + int64(len(w.buf))}
	w.key.Reset()
	beginBlocks(w.key, size)
	if w.buf == nil {
		w.buf = make([]byte, 0, spoolBuf)
	}
	for left := size; left > 0; {
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return c, err
			}
		}
		room := w.buf[len(w.buf) : int64(len(w.buf))+min(left, int64(cap(w.buf)-len(w.buf)))]
		n, err := io.ReadFull(r, room)
		if err != nil {
			return c, unexpected(err)
		}
		w.buf = w.buf[:len(w.buf)+n]
		if left -= int64(n); left == 0 {
			if odd := len(w.buf) % blockSize; odd > 0 {
				w.buf = append(w.buf, w.zeros[odd:]...) // cap is whole blocks
			}
		}
		w.hash()
	}
	w.key.Sum(c.Key[:0])
	return c, nil
}

// hash makes the leaves of the blocks in buf that have none.
func (w *spoolWriter) hash() {
	for ; w.hashed+blockSize <= len(w.buf); w.hashed += blockSize {
		b := w.buf[w.hashed:][:blockSize]
		sum, zero := w.zerosSum, bytes.Equal(b, w.zeros[:])
		if !zero {
			sum = sha256.Sum256(b)
		}
		w.sums = append(w.sums, sum[:]...)
		w.zero = append(w.zero, zero)
		_, _ = w.key.Write(sum[:])
	}
}

// flush writes what is buffered, which is whole blocks, but for long runs of zeros.
func (w *spoolWriter) flush() error {
	for at := 0; at < len(w.zero); {
		n := 0
		for at+n < len(w.zero) && w.zero[at+n] {
			n++
		}
		if n*blockSize >= holeMin {
			at += n
			continue
		}
		run := n
		for ; at+n < len(w.zero) && run*blockSize < holeMin; n++ { // up to the next long run
			if run++; !w.zero[at+n] {
				run = 0
			}
		}
		if run*blockSize >= holeMin {
			n -= run
		}
		if err := w.write(at*blockSize, (at+n)*blockSize); err != nil {
			return err
		}
		at += n
	}
	if len(w.sums) > 0 {
		if _, err := w.leaves.WriteAt(w.sums, w.off/blockSize*hashSize); err != nil {
			return fmt.Errorf("writing leaves: %w", err)
		}
	}
	w.off += int64(len(w.buf))
	w.buf, w.sums, w.zero, w.hashed = w.buf[:0], w.sums[:0], w.zero[:0], 0
	return nil
}

func (w *spoolWriter) write(from, to int) error {
	if _, err := w.data.WriteAt(w.buf[from:to], w.off+int64(from)); err != nil {
		return fmt.Errorf("writing spool: %w", err)
	}
	w.end = w.off + int64(to)
	return nil
}

// close writes what is left. A file that spool may be has its full length then.
func (w *spoolWriter) close() error {
	if err := w.flush(); err != nil {
		return err
	}
	if w.end < w.off {
		if _, err := w.data.WriteAt(w.zeros[:], w.off-blockSize); err != nil {
			return fmt.Errorf("writing spool: %w", err)
		}
	}
	return nil
}
