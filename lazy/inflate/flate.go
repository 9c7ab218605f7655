package inflate

import (
	"encoding/binary"
	"io"
	"unsafe"
)

const (
	window   = 32 << 10 // how far back a match may reach
	outSize  = 256 << 10
	inSize   = 64 << 10
	maxMatch = 258
	outFull  = window + outSize - maxMatch // from here on no match is begun
	// what one turn of the fast loop may write behind its place, and read ahead
	outMargin = maxMatch + 16
	inMargin  = 32
)

// buffer is what is inflated into: behind a window, with a margin.
type buffer [window + outSize + outMargin]byte

// decoder inflates DEFLATE. What it has inflated and not handed out yet is buf[from:to]; the window lies before.
type decoder struct {
	r      io.Reader
	rerr   error // of r, once it has ended
	in     [inSize]byte
	at, n  int    // what is left of in, in[at:n]
	gone   int64  // bytes of the input that were in in before
	bits   uint64 // the next bits of the input, the lowest first
	nbits  uint   // how many of them count; what is above is zero or what comes next
	buf    *buffer
	past   int // where the window begins: what lies before it was never written
	from   int
	to     int
	state  state
	final  bool
	stored int // bytes left of a stored block
	lit    [litTable]uint32
	dist   [distTable]uint32
	fixed  bool // lit and dist are those of a fixed block
}

type state uint8

const (
	atHeader state = iota
	inStored
	inCodes
	atEnd
)

// fill reads more input behind what is left of it. It returns io.EOF where there is none.
func (d *decoder) fill() error {
	if d.rerr != nil {
		return d.rerr
	}
	if d.at > 0 {
		d.gone += int64(d.at)
		d.n = copy(d.in[:], d.in[d.at:d.n])
		d.at = 0
	}
	for range 100 {
		n, err := d.r.Read(d.in[d.n:])
		d.n += n
		d.rerr = err
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	d.rerr = io.ErrNoProgress
	return d.rerr
}

// need has at least n bits in d.bits; n <= 48. No byte is taken from in that isn't needed for them.
func (d *decoder) need(n uint) error {
	for d.nbits < n {
		if d.at == d.n {
			if err := d.fill(); err != nil {
				return unexpected(err)
			}
		}
		d.bits |= uint64(d.in[d.at]) << d.nbits
		d.at++
		d.nbits += 8
	}
	return nil
}

// take gives the next n bits, which need has got.
func (d *decoder) take(n uint) uint {
	v := uint(d.bits & (1<<n - 1))
	d.bits >>= n
	d.nbits -= n
	return v
}

// offset is where in the input the decoder is.
func (d *decoder) offset() int64 { return d.gone + int64(d.at) - int64(d.nbits/8) }

// inflate decodes until something is there to hand out and buf is as good as full, or the data ends: io.EOF.
func (d *decoder) inflate() error {
	if d.to >= outFull { // all was handed out
		d.turn(d.buf)
	}
	for d.to < outFull {
		var err error
		switch d.state {
		case atHeader:
			err = d.header()
		case inStored:
			err = d.copyStored()
		case inCodes:
			err = d.codes()
		case atEnd:
			return io.EOF
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// turn goes on in a buffer, which may be the one that is in use, with nothing but the window.
func (d *decoder) turn(b *buffer) {
	keep := min(d.to-d.past, window)
	copy(b[window-keep:], d.buf[d.to-keep:d.to])
	d.buf, d.past, d.from, d.to = b, window-keep, window, window
}

// header reads what a block begins with (RFC 1951, section 3.2.3).
func (d *decoder) header() error {
	if d.final {
		d.state = atEnd
		return nil
	}
	if err := d.need(3); err != nil {
		return err
	}
	d.final = d.take(1) == 1
	switch d.take(2) {
	case 0:
		d.take(d.nbits & 7)
		if err := d.need(32); err != nil {
			return err
		}
		n, inverse := d.take(16), d.take(16)
		if n != ^inverse&0xffff {
			return d.corrupt("a stored block's length")
		}
		d.stored, d.state = int(n), inStored
	case 1:
		d.fixedCodes()
		d.state = inCodes
	case 2:
		d.state = inCodes
		return d.dynamicCodes()
	default:
		return d.corrupt("a block's type")
	}
	return nil
}

// copyStored copies a stored block, as much as there is room for.
func (d *decoder) copyStored() error {
	for d.stored > 0 && d.to < outFull {
		if d.at == d.n {
			if err := d.fill(); err != nil {
				return unexpected(err)
			}
		}
		n := copy(d.buf[d.to:window+outSize], d.in[d.at:min(d.n, d.at+d.stored)])
		d.at, d.to, d.stored = d.at+n, d.to+n, d.stored-n
	}
	if d.stored == 0 {
		d.state = atHeader
	}
	return nil
}

func (d *decoder) fixedCodes() {
	if d.fixed {
		return
	}
	d.fixed = true
	var lens [288]uint8
	for i := range lens {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		default:
			lens[i] = 8
		}
	}
	build(d.lit[:], lens[:], litBits, litEntry)
	pair(&d.lit)
	for i := range 32 {
		lens[i] = 5
	}
	build(d.dist[:], lens[:32], distBits, distEntry)
}

// codeOrder is the order in which the lengths of the code length code come.
var codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamicCodes reads the codes of a block (RFC 1951, section 3.2.7).
func (d *decoder) dynamicCodes() error {
	if err := d.need(14); err != nil {
		return err
	}
	nlit, ndist, ncode := int(d.take(5))+257, int(d.take(5))+1, int(d.take(4))+4
	if nlit > 286 || ndist > len(distBase) {
		return d.corrupt("a block's number of codes")
	}
	d.fixed = false
	var lens [286 + 30]uint8
	var codeLens [19]uint8
	for _, sym := range codeOrder[:ncode] {
		if err := d.need(3); err != nil {
			return err
		}
		codeLens[sym] = uint8(d.take(3))
	}
	const codeBits = 7 // no second table
	var table [1 << codeBits]uint32
	if !build(table[:], codeLens[:], codeBits, func(sym int) uint32 { return entryLiteral | uint32(sym)<<8 }) {
		return d.corrupt("a block's code of code lengths")
	}
	all := lens[:nlit+ndist]
	for i := 0; i < len(all); {
		e, err := d.symbol(table[:], codeBits)
		if err != nil {
			return err
		}
		sym := uint8(e >> 8)
		if sym < 16 {
			all[i] = sym
			i++
			continue
		}
		extra := [...]struct{ bits, base uint8 }{{2, 3}, {3, 3}, {7, 11}}[sym-16]
		if err := d.need(uint(extra.bits)); err != nil {
			return err
		}
		n := int(d.take(uint(extra.bits))) + int(extra.base)
		if n > len(all)-i || sym == 16 && i == 0 {
			return d.corrupt("a run of code lengths")
		}
		for range n {
			if sym == 16 {
				all[i] = all[i-1]
			}
			i++
		}
	}
	if !build(d.lit[:], all[:nlit], litBits, litEntry) {
		return d.corrupt("a block's code of literals and lengths")
	}
	pair(&d.lit)
	if !build(d.dist[:], all[nlit:], distBits, distEntry) {
		return d.corrupt("a block's code of distances")
	}
	return nil
}

// symbol reads one code, taking no byte more than it has, and gives its entry.
func (d *decoder) symbol(table []uint32, first uint) (uint32, error) {
	for {
		e := table[d.bits&(1<<first-1)]
		used := uint(e & 63)
		if e&(entryLiteral|entryKind) == entryTable {
			e = table[uint64(e>>16)+d.bits>>first&(1<<(e>>8&15)-1)]
			used += uint(e & 63)
		}
		code := used
		if e&(entryLiteral|entryKind) == 0 { // extra bits are for the caller
			code = used - uint(e&63) + uint(e>>8&63)
		}
		if code <= d.nbits {
			if e&(entryLiteral|entryKind) == entryBad {
				return 0, d.corrupt("a code that isn't used")
			}
			d.take(code)
			return e, nil
		}
		if err := d.need(d.nbits + 1); err != nil {
			return 0, err
		}
	}
}

// extra reads the extra bits of a length or a distance and gives its value.
func (d *decoder) extra(e uint32) (int, error) {
	n := uint(e&63) - uint(e>>8&63)
	if err := d.need(n); err != nil {
		return 0, err
	}
	return int(e>>16) + int(d.take(n)), nil
}

// codes decodes a block of codes, as far as there is room.
func (d *decoder) codes() error {
	for d.to < outFull {
		if d.n-d.at < inMargin && d.rerr == nil {
			if err := d.fill(); err != nil && err != io.EOF {
				return err
			}
		}
		if d.n-d.at >= inMargin {
			done, err := d.fast()
			if done || err != nil {
				return err
			}
			continue
		}
		if done, err := d.slow(); done || err != nil {
			return err
		}
	}
	return nil
}

// slow decodes one symbol with care: near the end of the input.
func (d *decoder) slow() (done bool, err error) {
	e, err := d.symbol(d.lit[:], litBits)
	if err != nil {
		return false, err
	}
	if e&entryLiteral != 0 {
		d.buf[d.to] = byte(e >> 8)
		d.to++
		if e&entryTwo != 0 {
			d.buf[d.to] = byte(e >> 16)
			d.to++
		}
		return false, nil
	}
	if e&entryKind == entryEnd {
		d.state = atHeader
		return true, nil
	}
	length, err := d.extra(e)
	if err != nil {
		return false, err
	}
	if e, err = d.symbol(d.dist[:], distBits); err != nil {
		return false, err
	}
	dist, err := d.extra(e)
	if err != nil {
		return false, err
	}
	if dist > d.to-d.past {
		return false, d.corrupt("a distance")
	}
	for range length {
		d.buf[d.to] = d.buf[d.to-dist]
		d.to++
	}
	return false, nil
}

// load and store move eight bytes without looking whether they lie in the buffer: fast sees to that.
func load(p *byte, i int) uint64 {
	return binary.LittleEndian.Uint64((*[8]byte)(unsafe.Add(unsafe.Pointer(p), i))[:])
}

func store(p *byte, i int, v uint64) {
	binary.LittleEndian.PutUint64((*[8]byte)(unsafe.Add(unsafe.Pointer(p), i))[:], v)
}

// fast decodes as long as there are inMargin bytes of input and room for outMargin bytes of output. Each turn takes at most 56 bits
// twice, in two loads of eight bytes, and writes at most six literals, or two and a match, the last of its stores beginning
// less than eight bytes before the end of that.
func (d *decoder) fast() (done bool, err error) {
	const litMask, distMask = 1<<litBits - 1, 1<<distBits - 1
	bits, nbits := d.bits, d.nbits
	at, inEnd := d.at, d.n-inMargin
	to, outEnd := d.to, outFull
	in, out := &d.in[0], &d.buf[0]
	lit, dist := &d.lit, &d.dist

	for at <= inEnd && to < outEnd {
		bits |= load(in, at) << (nbits & 63)
		at += int((63 - nbits) >> 3)
		nbits |= 56

		// Entries of the first table take at most litBits bits: five fit.
		e := lit[bits&litMask]
		if e&entryLiteral != 0 {
			store(out, to, uint64(e>>8))
			to += int(1 + e>>30&1)
			bits >>= e & 63
			nbits -= uint(e & 63)
			e = lit[bits&litMask]
			if e&entryLiteral != 0 {
				store(out, to, uint64(e>>8))
				to += int(1 + e>>30&1)
				bits >>= e & 63
				nbits -= uint(e & 63)
				e = lit[bits&litMask]
				if e&entryLiteral != 0 {
					store(out, to, uint64(e>>8))
					to += int(1 + e>>30&1)
					bits >>= e & 63
					nbits -= uint(e & 63)
					continue
				}
			}
		}
		if e&entryKind != 0 {
			if e&entryKind == entryTable {
				bits >>= litBits
				nbits -= litBits
				e = lit[(uint64(e>>16)+bits&(1<<(e>>8&15)-1))&(litTable-1)]
				if e&entryLiteral != 0 {
					store(out, to, uint64(e>>8))
					to++
					bits >>= e & 63
					nbits -= uint(e & 63)
					continue
				}
			}
			if e&entryKind == entryEnd {
				bits >>= e & 63
				nbits -= uint(e & 63)
				d.state, done = atHeader, true
				break
			}
			if e&entryKind != 0 {
				err = d.corrupt("a code that isn't used")
				break
			}
		}
		// At most 3 times litBits are gone: the length's code and extra bits, at most 20, are there.
		length := int(e>>16) + int(bits&(1<<(e&63)-1)>>(e>>8&63))
		bits >>= e & 63
		nbits -= uint(e & 63)

		bits |= load(in, at) << (nbits & 63)
		at += int((63 - nbits) >> 3)
		nbits |= 56

		e = dist[bits&distMask]
		if e&entryKind != 0 {
			if e&entryKind == entryTable {
				bits >>= distBits
				nbits -= distBits
				e = dist[(uint64(e>>16)+bits&(1<<(e>>8&15)-1))&(distTable-1)]
			}
			if e&entryKind != 0 {
				err = d.corrupt("a code that isn't used")
				break
			}
		}
		distance := int(e>>16) + int(bits&(1<<(e&63)-1)>>(e>>8&63))
		bits >>= e & 63
		nbits -= uint(e & 63)
		if distance > to-d.past {
			err = d.corrupt("a distance")
			break
		}
		end := to + length
		src := to - distance
		switch {
		case distance >= 8:
			for {
				store(out, to, load(out, src))
				to, src = to+8, src+8
				if to >= end {
					break
				}
			}
		case distance == 1:
			v := uint64(d.buf[src]) * 0x0101010101010101
			for ; to < end; to += 8 {
				store(out, to, v)
			}
		default:
			for ; to < end; to, src = to+1, src+1 {
				d.buf[to] = d.buf[src]
			}
		}
		to = end
	}
	// give back the bytes of which no bit was used
	at -= int(nbits >> 3)
	nbits &= 7
	d.bits, d.nbits, d.at, d.to = bits&(1<<nbits-1), nbits, at, to
	return done, err
}
