package store

import (
	"context"
	"path/filepath"
	"testing"
)

// TestIntact damages a block of an image, and its leaf.
func TestIntact(t *testing.T) {
	const blocks, bad = 300, 270 // beyond the first MiB
	for _, file := range []string{"image.erofs", "merkle"} {
		t.Run(file, func(t *testing.T) {
			s := openStore(t)
			sealed(t, s, blocks)
			off := int64(bad * BlockSize)
			if file == "merkle" {
				off = merkleSize(blocks) - levels(blocks)[0]*BlockSize + bad*hashSize
			}
			flip(t, filepath.Join(s.ImageDir(testKey), file), off)
			im, err := s.Image(context.Background(), testKey)
			if err != nil {
				t.Fatal(err)
			}
			defer im.Close()
			ended, cancel := context.WithCancel(context.Background())
			cancel()
			for _, c := range []struct {
				name   string
				ctx    context.Context
				off, n int64
				want   bool
			}{
				{"all", context.Background(), 0, blocks * BlockSize, false},
				{"before", context.Background(), 0, bad * BlockSize, true},
				{"one byte of it", context.Background(), bad * BlockSize, 1, false},
				{"behind", context.Background(), (bad + 1) * BlockSize, 29*BlockSize - 1, true},
				{"at the end of ctx", ended, 0, 1, false},
			} {
				if got := im.Intact(c.ctx, c.off, c.n); got != c.want {
					t.Errorf("%s: %v", c.name, got)
				}
			}
		})
	}
}
