package layer

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"testing"
)

// TestBlocksKey compares keys made of leaves with those of the spool that has them.
func TestBlocksKey(t *testing.T) {
	for _, size := range []int64{1, blockSize - 1, blockSize, blockSize + 1, 3 * blockSize, 5*blockSize + 7, spoolBuf, 2*spoolBuf + 1} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			var data, leaves memory
			w := newSpoolWriter(&data, &leaves)
			err := w.content(bytes.NewReader(bytes.Repeat([]byte("x"), int(size))), size)
			if err == nil {
				err = w.close()
			}
			if err != nil {
				t.Fatal(err)
			}
			c := w.contents[0]
			if BlocksKey(size, leaves.b) != c.Key {
				t.Error("another key")
			}
			if BlocksKey(size+1, leaves.b) == c.Key {
				t.Error("the same key for another size")
			}
			leaves.b[0] ^= 1
			if BlocksKey(size, leaves.b) == c.Key {
				t.Error("the same key for other leaves")
			}
		})
	}
}

// TestKeysOfMany compares the keys of contents that lie across the writer's buffers with those of their bytes.
func TestKeysOfMany(t *testing.T) {
	var data, leaves memory
	w := newSpoolWriter(&data, &leaves)
	sizes := []int64{spoolBuf - blockSize, blockSize, 1, spoolBuf - 1, 3*spoolBuf + 5, 7, 2 * spoolBuf, 9}
	for i, size := range sizes {
		b := bytes.Repeat([]byte{byte(i % 3)}, int(size)) // some are zeros
		if err := w.content(bytes.NewReader(b), size); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	for i, c := range w.contents {
		block := bytes.Repeat([]byte{byte(i % 3)}, int(c.Size))
		var want []byte
		for len(block) > 0 {
			n := min(len(block), blockSize)
			h := sha256.Sum256(append(bytes.Clone(block[:n]), make([]byte, blockSize-n)...))
			want = append(want, h[:]...)
			block = block[n:]
		}
		if got := leaves.b[c.SpoolOff/blockSize*hashSize:][:len(want)]; !bytes.Equal(got, want) {
			t.Errorf("content %d: other leaves", i)
		}
		if c.Size != sizes[i] || c.Key != BlocksKey(c.Size, want) {
			t.Errorf("content %d: %d bytes, or another key", i, c.Size)
		}
	}
}
