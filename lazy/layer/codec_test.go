package layer

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
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
	if d := cmp.Diff(ix, &got, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("(-before +after):\n%s", d)
	}
	again, err := got.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, again) {
		t.Error("encoded differently the second time")
	}
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
