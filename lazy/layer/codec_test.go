package layer

import (
	"bytes"
	"crypto/sha256"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pexfs/pex/lazy/tree"
)

func roundTrip(t testing.TB, ix *Index) {
	t.Helper()
	b, err := ix.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var got Index
	if err := got.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	if !sameIndex(ix, &got) {
		t.Errorf("(-before +after):\n%s", cmp.Diff(ix, &got, cmpopts.EquateEmpty()))
	}
	again, err := got.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, again) {
		t.Error("encoded differently the second time")
	}
}

// sameIndex tells whether two indexes are equal. cmp takes long for large ones.
func sameIndex(a, b *Index) bool {
	return a.Source == b.Source && a.Format == b.Format && slices.EqualFunc(a.Entries, b.Entries, sameEntry) &&
		slices.Equal(a.Contents, b.Contents) && slices.Equal(a.Chunks, b.Chunks)
}

func sameEntry(a, b tree.Entry) bool {
	same := slices.EqualFunc(a.Xattrs, b.Xattrs, func(x, y tree.Xattr) bool { return x.Name == y.Name && bytes.Equal(x.Value, y.Value) })
	a.Xattrs, b.Xattrs = nil, nil
	return same && reflect.DeepEqual(a, b)
}

// samples are indexes of both kinds.
func samples(t testing.TB) (fromTar, fromTOC *Index) {
	t.Helper()
	src := makeTar(t, sample()...)
	s, err := stream(t, src, digestOf(src), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	b, toc, _ := built(t, src)
	ix, err := tocOf(t, b, toc)
	if err != nil {
		t.Fatal(err)
	}
	return s.Index, ix
}

func TestCodec(t *testing.T) {
	fromTar, fromTOC := samples(t)
	roundTrip(t, fromTar)
	roundTrip(t, fromTOC)
	roundTrip(t, &Index{})
}

func TestCodecDamaged(t *testing.T) {
	_, ix := samples(t)
	b, err := ix.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(b) {
		if new(Index).UnmarshalBinary(b[:n]) == nil {
			t.Errorf("cut to %d of %d bytes it was taken", n, len(b))
		}
	}
	for i := range len(b) * 8 {
		b[i/8] ^= 1 << (i % 8)
		got := Index{Format: Zstd}
		if got.UnmarshalBinary(b) == nil {
			t.Errorf("with bit %d flipped it was taken", i)
		}
		if got.Format != Zstd || got.Entries != nil {
			t.Fatal("an index was changed by a failure")
		}
		b[i/8] ^= 1 << (i % 8)
	}
}

// FuzzUnmarshal damages an index and makes its checksum right again.
func FuzzUnmarshal(f *testing.F) {
	fromTar, fromTOC := samples(f)
	for _, ix := range []*Index{fromTar, fromTOC, {}} {
		b, err := ix.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:len(b)-sha256.Size])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		sum := sha256.Sum256(b)
		var ix Index
		if ix.UnmarshalBinary(append(bytes.Clone(b), sum[:]...)) != nil {
			return
		}
		for _, c := range ix.Contents {
			if int(c.FirstChunk)+int(c.Chunks) > len(ix.Chunks) || c.Size <= 0 || c.SpoolOff < 0 {
				t.Fatalf("content %+v", c)
			}
		}
		for _, c := range ix.Chunks {
			if c.Start < 0 || c.End <= c.Start || c.Inner < 0 || c.Size <= 0 || c.Size > maxChunk {
				t.Fatalf("chunk %+v", c)
			}
		}
		roundTrip(t, &ix)
	})
}
