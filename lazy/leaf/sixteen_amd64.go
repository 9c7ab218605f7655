package leaf

import (
	"encoding/binary"

	"golang.org/x/sys/cpu"
)

// lanes is how many blocks are hashed at once; 1 where the processor or the system can't.
var lanes = func() int {
	if cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW {
		return most
	}
	return 1
}()

// initial is the state that a hash begins with (FIPS 180-4, section 5.3.3).
var initial = [8]uint32{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}

// sixteen goes from the initial state, of each of most messages of Block bytes that lie one behind the other, to the last.
//
//go:noescape
func sixteen(state *[8][most]uint32, p *byte)

// sum hashes most blocks at once.
func sum(sums *[most * Size]byte, p *[most * Block]byte) {
	var state [8][most]uint32
	for i := range state {
		for lane := range state[i] {
			state[i][lane] = initial[i]
		}
	}
	sixteen(&state, &p[0])
	for i := range state {
		for lane, word := range state[i] {
			binary.BigEndian.PutUint32(sums[lane*Size+i*4:], word)
		}
	}
}
