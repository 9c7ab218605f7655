// Package inflate decodes gzip (RFC 1952, RFC 1951), fast: most images are plain gzip, and to inflate them is what their
// users wait for. It accepts what the standard library's compress/gzip accepts and gives the same bytes.
//
// It keeps 64 bits of input in a register, looks codes up in tables whose entries have all there is to know of a symbol (or of two
// literals), copies eight bytes at once, and looks at limits once a turn, with room on both sides. That is how libdeflate does it; what
// is ours is the rest.
package inflate

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

var (
	// ErrHeader is wrapped where no gzip member begins.
	ErrHeader = errors.New("invalid header")
	// ErrCorrupt is wrapped where the compressed data can't be right.
	ErrCorrupt = errors.New("invalid DEFLATE data")
	// ErrChecksum is wrapped where a member's content has another CRC-32 or size than its trailer says.
	ErrChecksum = errors.New("checksum mismatch")
)

func (d *decoder) corrupt(what string) error {
	return fmt.Errorf("%w: %s near offset %d", ErrCorrupt, what, d.offset())
}

// Reader inflates a gzip stream: all of its members, one after the other. It reads ahead: up to 64 KiB behind the stream's end. It is for one
// goroutine at a time, and takes 400 KB.
type Reader struct {
	d      decoder
	crc    uint32
	size   uint32
	first  bool // no member has begun
	single bool
	err    error
}

// NewReader is a reader of the gzip stream in r.
func NewReader(r io.Reader) *Reader {
	z := new(Reader)
	z.Reset(r)
	return z
}

// Reset begins anew, with the stream in r.
func (z *Reader) Reset(r io.Reader) {
	d := &z.d
	if d.buf == nil {
		d.buf = new(buffer)
	}
	d.r, d.rerr, d.at, d.n, d.gone = r, nil, 0, 0, 0
	d.from, d.to = window, window
	z.first, z.single, z.err = true, false, nil
	z.begin()
}

// Multistream says whether to go on behind the end of a member, which is the default, or to end there.
func (z *Reader) Multistream(on bool) { z.single = !on }

// begin is for a member whose header comes next. Nothing of the member before is in its window.
func (z *Reader) begin() {
	d := &z.d
	d.bits, d.nbits, d.past = 0, 0, d.to
	d.state, d.final, d.stored = atHeader, false, 0
	z.crc, z.size = 0, 0
}

// Read implements io.Reader. At the end of the input within a member the error is io.ErrUnexpectedEOF; the input's own errors come
// as they are.
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := z.more(); err != nil {
		return 0, err
	}
	n := copy(p, z.d.buf[z.d.from:z.d.to])
	z.d.from += n
	return n, nil
}

// WriteTo implements io.WriterTo, without copying.
func (z *Reader) WriteTo(w io.Writer) (written int64, err error) {
	for {
		if err := z.more(); err == io.EOF {
			return written, nil
		} else if err != nil {
			return written, err
		}
		n, err := w.Write(z.d.buf[z.d.from:z.d.to])
		z.d.from += n
		written += int64(n)
		if err != nil {
			return written, err
		}
	}
}

// BufferSize is the length of the buffers that Next takes.
const BufferSize = len(buffer{})

// Next gives the next bytes of the stream, 256 KiB or what is left of it, without copying them, and leaves the buffer in which they lie, mem,
// to the caller: the reader goes on in spare, a buffer of BufferSize bytes. Errors are those of Read; with one, spare is still the caller's.
func (z *Reader) Next(spare []byte) (mem, p []byte, err error) {
	b, d := (*buffer)(spare), &z.d
	for d.to < outFull && z.err == nil {
		z.step()
	}
	if err := z.more(); err != nil {
		return nil, nil, err
	}
	mem, p = d.buf[:], d.buf[d.from:d.to]
	d.turn(b)
	return mem, p, nil
}

// more has something to hand out in buf, or gives the error that the stream ends with.
func (z *Reader) more() error {
	d := &z.d
	for d.from == d.to && z.err == nil {
		z.step()
	}
	if d.from < d.to {
		return nil
	}
	return z.err
}

// step inflates until buf is full or the member ends, or begins the next member. If buf is full, all of it was handed out.
func (z *Reader) step() {
	d := &z.d
	if z.first || d.state == atEnd {
		z.err = z.next()
		return
	}
	from := d.to
	if d.to >= outFull {
		from = window
	}
	err := d.inflate()
	z.crc = crc32.Update(z.crc, crc32.IEEETable, d.buf[from:d.to])
	z.size += uint32(d.to - from)
	if err != nil && err != io.EOF {
		z.err = err
	}
}

// next ends a member and begins the next one.
func (z *Reader) next() error {
	d := &z.d
	if !z.first {
		d.take(d.nbits & 7)
		if err := d.need(32); err != nil {
			return err
		}
		crc := uint32(d.take(32))
		if err := d.need(32); err != nil {
			return err
		}
		size := uint32(d.take(32))
		if crc != z.crc || size != z.size {
			return fmt.Errorf("%w: %d bytes (modulo 2^32) with CRC-32 %08x, its trailer says %d with %08x", ErrChecksum, z.size, z.crc, size, crc)
		}
		if z.single {
			return io.EOF
		}
		z.begin()
	}
	if err := d.need(8); err == io.ErrUnexpectedEOF {
		if z.first {
			return err
		}
		return io.EOF
	} else if err != nil {
		return err
	}
	z.first = false
	return z.header()
}

// Flags of a member's header (RFC 1952, section 2.3.1).
const (
	flagCRC     = 1 << 1
	flagExtra   = 1 << 2
	flagName    = 1 << 3
	flagComment = 1 << 4
)

// header reads a member's header.
func (z *Reader) header() error {
	at := z.d.offset()
	h := headerReader{d: &z.d}
	magic, method, flags := h.uint16(), h.byte(), h.byte()
	for range 6 { // time, extra flags, system
		h.byte()
	}
	if h.err == nil && (magic != 0x8b1f || method != 8) {
		return fmt.Errorf("%w at offset %d", ErrHeader, at)
	}
	if flags&flagExtra != 0 {
		for range h.uint16() {
			if h.byte(); h.err != nil {
				break
			}
		}
	}
	for _, f := range [...]byte{flagName, flagComment} {
		if flags&f == 0 {
			continue
		}
		n := 0
		for h.byte() != 0 && h.err == nil {
			if n++; n >= 512 { // as the standard library has it
				return fmt.Errorf("%w at offset %d: a name of more than 511 bytes", ErrHeader, at)
			}
		}
	}
	if flags&flagCRC != 0 {
		if want := uint16(h.crc); h.uint16() != want && h.err == nil {
			return fmt.Errorf("%w at offset %d: its CRC-16 differs", ErrHeader, at)
		}
	}
	return h.err
}

// headerReader reads bytes and computes their CRC. After an error it gives zeros.
type headerReader struct {
	d   *decoder
	crc uint32
	err error
}

func (h *headerReader) byte() byte {
	if h.err == nil {
		h.err = h.d.need(8)
	}
	if h.err != nil {
		return 0
	}
	b := [1]byte{byte(h.d.take(8))}
	h.crc = crc32.Update(h.crc, crc32.IEEETable, b[:])
	return b[0]
}

func (h *headerReader) uint16() uint16 { return uint16(h.byte()) | uint16(h.byte())<<8 }

// unexpected is err, or io.ErrUnexpectedEOF where the input has ended that should go on.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
