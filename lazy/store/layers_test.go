package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"os"
	"sync"
	"testing"
)

// TestSpoolReplaced opens a layer's spool while another takes its place, over and over, and contents are lost in between: what the
// leaves name is there.
func TestSpoolReplaced(t *testing.T) {
	s := openStore(t)
	digest := string(testKey)
	b := content(2)
	var leaves []byte
	for i := range 2 {
		h := sha256.Sum256(b[i*BlockSize:][:BlockSize])
		leaves = append(leaves, h[:]...)
	}
	keep := func() {
		sp, err := s.NewSpool()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sp.Data.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := sp.Leaves.WriteAt(leaves, 0); err != nil {
			t.Fatal(err)
		}
		if err := s.KeepSpool(sp, digest); err != nil {
			t.Fatal(err)
		}
		sp.Close()
	}
	keep()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		got := make([]byte, len(b))
		for ctx.Err() == nil {
			sp, err := s.LayerSpool(digest)
			if err != nil {
				t.Error(err)
				return
			}
			_, before := sp.LeavesOf(0, int64(len(b)))
			if _, err := sp.Data.ReadAt(got, 0); err != nil {
				t.Error(err)
			}
			_, after := sp.LeavesOf(0, int64(len(b)))
			if before && after && !bytes.Equal(got, b) {
				t.Error("the leaves name what is not there")
			}
			sp.Close()
		}
	})
	for range 500 {
		sp, err := s.LayerSpool(digest)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range []struct {
			f *os.File
			n int
		}{{sp.Leaves, len(leaves)}, {sp.Data, len(b)}} {
			if _, err := f.f.WriteAt(make([]byte, f.n), 0); err != nil {
				t.Fatal(err)
			}
		}
		sp.Close()
		keep()
	}
	cancel()
	wg.Wait()
}
