// Package leaf computes the SHA-256 of blocks of 4 KiB, the leaves of a Merkle tree. With AVX-512 sixteen blocks are hashed side by side,
// which takes less than half the time that the processor's own instructions for SHA-256 take.
package leaf

import "crypto/sha256"

const (
	// Block is the size of a block in bytes.
	Block = 4096
	// Size is the size of a hash in bytes.
	Size = sha256.Size

	most = 16 // blocks at once
)

// Sums writes the SHA-256 of every block of p, which is whole blocks, to sums, which has room for them.
func Sums(sums, p []byte) {
	sums = sums[:len(p)/Block*Size]
	for lanes == most && len(p) >= most*Block {
		sum((*[most * Size]byte)(sums), (*[most * Block]byte)(p))
		sums, p = sums[most*Size:], p[most*Block:]
	}
	for len(p) >= Block {
		h := sha256.Sum256(p[:Block])
		copy(sums, h[:])
		sums, p = sums[Size:], p[Block:]
	}
}
