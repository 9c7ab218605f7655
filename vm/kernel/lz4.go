package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	lz4Magic = "\x02\x21\x4c\x18"
	lz4Block = 8 << 20 // the size of a full block, unpacked
)

var errLZ4 = errors.New("malformed LZ4 data")

// unpackLZ4 unpacks an LZ4 legacy frame of want bytes: the magic number, then blocks, each with its length before it,
// and each but the last of 8 MiB unpacked (lz4: doc/lz4_Frame_format.md, "Legacy frame"). It allocates no more than
// the packed data can yield.
func unpackLZ4(src []byte, want int) ([]byte, error) {
	if len(src) < 4 || string(src[:4]) != lz4Magic {
		return nil, fmt.Errorf("%w: no magic number", errLZ4)
	}
	src = src[4:]
	// A byte of a block yields at most 255 bytes.
	if want < 0 || want/255 > len(src) {
		return nil, fmt.Errorf("%w: %d bytes can't hold %d", errLZ4, len(src), want)
	}
	dst := make([]byte, 0, want)
	for len(dst) < want {
		if len(src) < 4 {
			return nil, fmt.Errorf("%w: ends after %d of %d bytes", errLZ4, len(dst), want)
		}
		n := binary.LittleEndian.Uint32(src)
		src = src[4:]
		if uint64(n) > uint64(len(src)) {
			return nil, fmt.Errorf("%w: block of %d bytes, %d are left", errLZ4, n, len(src))
		}
		var err error
		if dst, err = appendLZ4(dst, src[:n], min(lz4Block, want-len(dst))); err != nil {
			return nil, err
		}
		src = src[n:]
	}
	if len(src) != 0 {
		return nil, fmt.Errorf("%w: %d bytes after the end", errLZ4, len(src))
	}
	return dst, nil
}

// appendLZ4 unpacks a block of exactly want bytes behind dst (lz4: doc/lz4_Block_format.md). The block doesn't refer to
// what was in dst before.
func appendLZ4(dst, src []byte, want int) ([]byte, error) {
	start := len(dst)
	end := start + want
	for len(src) > 0 {
		token := src[0]
		src = src[1:]
		n, rest, err := lz4Length(int(token>>4), src)
		if err != nil {
			return nil, err
		}
		src = rest
		if n > len(src) || n > end-len(dst) {
			return nil, fmt.Errorf("%w: %d literals", errLZ4, n)
		}
		dst = append(dst, src[:n]...)
		if src = src[n:]; len(src) == 0 {
			break // the last sequence has literals only
		}
		if len(src) < 2 {
			return nil, fmt.Errorf("%w: no offset", errLZ4)
		}
		off := int(binary.LittleEndian.Uint16(src))
		if n, src, err = lz4Length(int(token&15), src[2:]); err != nil {
			return nil, err
		}
		n += 4
		if off == 0 || off > len(dst)-start || n > end-len(dst) {
			return nil, fmt.Errorf("%w: match of %d bytes at distance %d", errLZ4, n, off)
		}
		for n > 0 { // a match may overlap what it yields
			m := min(n, off)
			dst = append(dst, dst[len(dst)-off:len(dst)-off+m]...)
			n -= m
			off += m
		}
	}
	if len(dst) != end {
		return nil, fmt.Errorf("%w: block of %d bytes, want %d", errLZ4, len(dst)-start, want)
	}
	return dst, nil
}

// lz4Length completes a length whose first 4 bits are n.
func lz4Length(n int, src []byte) (int, []byte, error) {
	if n < 15 {
		return n, src, nil
	}
	for i, b := range src {
		if n += int(b); n > lz4Block {
			break
		}
		if b != 255 {
			return n, src[i+1:], nil
		}
	}
	return 0, nil, fmt.Errorf("%w: length", errLZ4)
}
