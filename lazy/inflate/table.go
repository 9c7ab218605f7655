package inflate

import "math/bits"

// An entry of a decoding table says what the next bits of the input mean. From the lowest bit up:
//
//	0–5    bits to consume, of the code and of what follows it
//	8–15   a literal; of a length or distance: bits of the code alone
//	16–30  a second literal; a length's or distance's base; the index of a second table, whose entry has at 8–15 the bits of its index
//	31     literal
//
// Entries that are neither literals nor lengths nor distances have one of these kinds, and a base of 0:
const (
	entryLiteral = 1 << 31
	entryKind    = 1<<6 | 1<<7
	entryTable   = 1 << 6 // the code goes on in a second table
	entryEnd     = 1 << 7 // the block ends
	entryBad     = 1<<6 | 1<<7

	entryTwo = 1 << 30 // with entryLiteral: two of them
)

const (
	maxCode  = 15 // bits of the longest code
	litBits  = 11 // of the index of the first table of literals and lengths
	distBits = 8

	// the most entries that codes of at most 15 bits for 288 or 32 symbols take, with room
	litTable  = 1 << 12
	distTable = 1 << 10
)

// lengths and distances, with the number of extra bits in the upper half (RFC 1951, section 3.2.5).
var (
	lengthBase = [29]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	lengthBits = [29]uint8{8: 1, 9: 1, 10: 1, 11: 1, 12: 2, 13: 2, 14: 2, 15: 2, 16: 3, 17: 3, 18: 3, 19: 3, 20: 4, 21: 4, 22: 4, 23: 4, 24: 5, 25: 5, 26: 5, 27: 5}
	distBase   = [30]uint16{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577}
)

// litEntry and distEntry are a symbol's entry without its code's bits.
func litEntry(sym int) uint32 {
	switch {
	case sym < 256:
		return entryLiteral | uint32(sym)<<8
	case sym == 256:
		return entryEnd
	case sym-257 < len(lengthBase):
		return uint32(lengthBase[sym-257])<<16 | uint32(lengthBits[sym-257])
	}
	return entryBad
}

func distEntry(sym int) uint32 {
	if sym >= len(distBase) {
		return entryBad
	}
	return uint32(distBase[sym])<<16 | uint32(max(sym/2-1, 0))
}

// build makes a decoding table for canonical codes (RFC 1951, section 3.2.2) of these lengths, 0 for symbols without one. It tells
// whether the code is complete, or has but one code, of one bit; no code at all is right, too, and then none decodes.
func build(table []uint32, lens []uint8, first int, entry func(sym int) uint32) bool {
	var count [maxCode + 1]int
	for _, l := range lens {
		count[l]++
	}
	count[0] = 0
	longest, left := 0, 1
	for l := 1; l <= maxCode; l++ {
		left = left<<1 - count[l]
		if left < 0 {
			return false
		}
		if count[l] > 0 {
			longest = l
		}
	}
	if left > 0 && longest > 0 && !(longest == 1 && count[1] == 1) {
		return false
	}
	if left > 0 {
		for i := range 1 << first {
			table[i] = entryBad | uint32(min(longest, 1)) // where there is no code, no bit is needed to see that
		}
	}
	var next [maxCode + 2]int // the symbols of each length, in order
	for l := 1; l <= maxCode; l++ {
		next[l+1] = next[l] + count[l]
	}
	var sorted [288]uint16
	for sym, l := range lens {
		if l > 0 {
			sorted[next[l]] = uint16(sym)
			next[l]++
		}
	}

	code, n := 0, 0      // code has its first bit highest
	end := 1 << first    // of what is used of table
	prefix, sub := -1, 0 // of the second table being filled
	var subBits, subEnd int
	for l := 1; l <= longest; l++ {
		for range count[l] {
			sym := int(sorted[n])
			n++
			e := entry(sym)
			rev := int(bits.Reverse16(uint16(code)) >> (16 - l))
			code++
			if l <= first {
				e = withCode(e, l)
				for i := rev; i < 1<<first; i += 1 << l {
					table[i] = e
				}
				continue
			}
			if p := rev & (1<<first - 1); p != prefix {
				// as wide as the longest code with this prefix: all that follow fill it up
				prefix, sub = p, end
				subBits = l - first
				for room := 1<<subBits - count[l] + (n - 1 - start(count[:], l)); room > 0 && first+subBits < longest; {
					subBits++
					room = room<<1 - count[first+subBits]
				}
				subEnd = sub + 1<<subBits
				if subEnd > len(table) {
					return false // never: the table is large enough for every code
				}
				end = subEnd
				table[p] = uint32(sub)<<16 | uint32(subBits)<<8 | entryTable | uint32(first)
			}
			e = withCode(e, l-first)
			for i := sub + rev>>first; i < subEnd; i += 1 << (l - first) {
				table[i] = e
			}
		}
		code <<= 1
	}
	return true
}

// start is the number of codes shorter than l.
func start(count []int, l int) (n int) {
	for _, c := range count[1:l] {
		n += c
	}
	return n
}

// withCode adds a code of n bits to an entry.
func withCode(e uint32, n int) uint32 {
	if e&entryLiteral == 0 && e&entryKind == 0 {
		e |= uint32(n) << 8
	}
	return e + uint32(n)
}

// pair joins entries of literals whose codes fit into one index together.
func pair(table *[litTable]uint32) {
	for i := 1<<litBits - 1; i >= 0; i-- { // what is looked up lies lower, so is not joined yet
		e := table[i]
		if e&entryLiteral == 0 {
			continue
		}
		n := e & 63
		if e2 := table[i>>n]; e2&entryLiteral != 0 && n+e2&63 <= litBits {
			table[i] = e&^63 | e2&0xff00<<8 | entryTwo | (n + e2&63)
		}
	}
}
