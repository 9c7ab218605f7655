package layer

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"slices"

	"github.com/pexfs/pex/lazy/leaf"
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
	contents     []Content // those whose blocks were all written have their keys
	keyed        int       // how many these are
	buf          []byte    // what wasn't written yet; always whole blocks but within content
	sums         []byte    // of buf's blocks
	zero         []bool    // which of these are zeros
	off          int64     // of buf in the spool
	end          int64     // of what was written to data
	key          hash.Hash // of the first content without a key
	zeros        [blockSize]byte
	zerosSum     [hashSize]byte
}

func newSpoolWriter(data, leaves io.WriterAt) *spoolWriter {
	w := &spoolWriter{data: data, leaves: leaves, key: sha256.New()}
	w.zerosSum = sha256.Sum256(w.zeros[:])
	return w
}

// content copies a content of size bytes from r; it is the last one of contents then. Its key comes with flush.
func (w *spoolWriter) content(r io.Reader, size int64) error {
	w.contents = append(w.contents, Content{Size: size, SpoolOff: w.off + int64(len(w.buf))})
	if w.buf == nil {
		w.buf = make([]byte, 0, spoolBuf)
	}
	for left := size; left > 0; {
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return err
			}
		}
		room := w.buf[len(w.buf) : int64(len(w.buf))+min(left, int64(cap(w.buf)-len(w.buf)))]
		n, err := io.ReadFull(r, room)
		if err != nil {
			return unexpected(err)
		}
		w.buf = w.buf[:len(w.buf)+n]
		left -= int64(n)
	}
	if odd := len(w.buf) % blockSize; odd > 0 {
		w.buf = append(w.buf, w.zeros[odd:]...) // cap is whole blocks
	}
	return nil
}

// hash makes the leaves of all that is in buf, and the keys of the contents that end there.
func (w *spoolWriter) hash() {
	n := len(w.buf) / blockSize
	w.sums = slices.Grow(w.sums[:0], n*hashSize)[:n*hashSize]
	w.zero = w.zero[:0]
	for i := range n {
		w.zero = append(w.zero, bytes.Equal(w.buf[i*blockSize:][:blockSize], w.zeros[:]))
	}
	for from := 0; from < n; {
		to := from + 1
		for to < n && w.zero[to] == w.zero[from] {
			to++
		}
		if w.zero[from] {
			for i := range to - from {
				copy(w.sums[(from+i)*hashSize:], w.zerosSum[:])
			}
		} else {
			leaf.Sums(w.sums[from*hashSize:], w.buf[from*blockSize:to*blockSize])
		}
		from = to
	}
	end := w.off + int64(len(w.buf))
	for i := w.keyed; i < len(w.contents); i++ {
		c := &w.contents[i]
		if c.SpoolOff >= w.off {
			w.key.Reset()
			beginBlocks(w.key, c.Size)
		}
		last := c.SpoolOff + blocks(c.Size)*blockSize
		from, to := max(c.SpoolOff, w.off)-w.off, min(last, end)-w.off
		_, _ = w.key.Write(w.sums[from/blockSize*hashSize : to/blockSize*hashSize])
		if last > end {
			break
		}
		w.key.Sum(c.Key[:0])
		w.keyed++
	}
}

// flush writes what is buffered, which is whole blocks, but for long runs of zeros.
func (w *spoolWriter) flush() error {
	w.hash()
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
	w.buf = w.buf[:0]
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
