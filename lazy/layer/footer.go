package layer

import (
	"encoding/binary"
	"math"
	"strconv"
)

// An eStargz blob ends in an empty gzip member whose extra field gives the offset of the TOC's member in 16 hexadecimal
// digits: https://github.com/containerd/stargz-snapshotter/blob/main/docs/estargz.md#footer. Stargz, its predecessor,
// has the digits and the magic as the whole of the extra field, eStargz has them in a subfield of its own.
const (
	footerSize       = 51
	legacyFooterSize = 47
	footerMagic      = "STARGZ"
)

// parseFooter gives the offset of the TOC that the footer at the end of tail states, and the footer's size.
func parseFooter(tail []byte) (tocOffset, size int64, ok bool) {
	if n := len(tail) - footerSize; n >= 0 {
		if extra := extraField(tail[n:]); len(extra) == 4+16+len(footerMagic) && extra[0] == 'S' && extra[1] == 'G' &&
			binary.LittleEndian.Uint16(extra[2:]) == 16+uint16(len(footerMagic)) {
			off, ok := parseOffset(extra[4:])
			return off, footerSize, ok
		}
	}
	if n := len(tail) - legacyFooterSize; n >= 0 {
		if extra := extraField(tail[n:]); len(extra) == 16+len(footerMagic) {
			off, ok := parseOffset(extra)
			return off, legacyFooterSize, ok
		}
	}
	return 0, 0, false
}

// extraField is that of a gzip member with no other optional field, or nil (RFC 1952, section 2.3).
func extraField(b []byte) []byte {
	const (
		deflate = 8
		fextra  = 1 << 2
	)
	if b[0] != 0x1f || b[1] != 0x8b || b[2] != deflate || b[3] != fextra {
		return nil
	}
	n := int(binary.LittleEndian.Uint16(b[10:]))
	if b = b[12:]; n > len(b) {
		return nil
	}
	return b[:n]
}

func parseOffset(b []byte) (int64, bool) {
	if string(b[16:]) != footerMagic {
		return 0, false
	}
	off, err := strconv.ParseUint(string(b[:16]), 16, 64)
	return int64(off), err == nil && off <= math.MaxInt64
}
