package leaf

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"testing"
)

// random gives n blocks of random bytes; one is zeros.
func random(n int) []byte {
	p := make([]byte, n*Block)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(p)
	if n > 2 {
		clear(p[2*Block:][:Block])
	}
	return p
}

func TestSums(t *testing.T) {
	const upTo = 35
	p := random(upTo)
	for n := range upTo + 1 {
		for _, at := range []int{0, 1} { // where they are not aligned, too
			blocks := append(make([]byte, at), p[:n*Block]...)[at:]
			sums := make([]byte, n*Size+1)
			sums[n*Size] = 7
			Sums(sums, blocks)
			var want []byte
			for b := blocks; len(b) > 0; b = b[Block:] {
				h := sha256.Sum256(b[:Block])
				want = append(want, h[:]...)
			}
			if !bytes.Equal(sums, append(want, 7)) {
				t.Errorf("%d blocks, %d bytes behind their place: other hashes than the standard library's", n, at)
			}
		}
	}
}

func BenchmarkSums(b *testing.B) {
	p := random(256)
	sums := make([]byte, 256*Size)
	b.Run("here", func(b *testing.B) {
		b.SetBytes(int64(len(p)))
		for b.Loop() {
			Sums(sums, p)
		}
	})
	b.Run("standard library", func(b *testing.B) {
		b.SetBytes(int64(len(p)))
		for b.Loop() {
			for i := range len(p) / Block {
				h := sha256.Sum256(p[i*Block:][:Block])
				copy(sums[i*Size:], h[:])
			}
		}
	})
}
