package layer

import (
	"bytes"
	"fmt"
	"testing"
)

// TestBlocksKey compares keys made of leaves with those of the spool that has them.
func TestBlocksKey(t *testing.T) {
	for _, size := range []int64{1, blockSize - 1, blockSize, blockSize + 1, 3 * blockSize, 5*blockSize + 7} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			var data, leaves memory
			w := newSpoolWriter(&data, &leaves)
			c, err := w.content(bytes.NewReader(bytes.Repeat([]byte("x"), int(size))), size)
			if err == nil {
				err = w.close()
			}
			if err != nil {
				t.Fatal(err)
			}
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
