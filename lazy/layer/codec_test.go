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
	var p Packed
	if err := p.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*Packed{&p, ix.Pack()} {
		entries, err := unpacked(p)
		got := &Index{Source: p.Source, Format: p.Format, Entries: entries, Contents: p.Contents, Chunks: p.Chunks}
		if err != nil || p.Len() != len(entries) || !sameIndex(ix, got) {
			t.Errorf("packed, with error %v (-before +after):\n%s", err, cmp.Diff(ix, got, cmpopts.EquateEmpty()))
		}
		if again, err := p.MarshalBinary(); err != nil || !bytes.Equal(b, again) {
			t.Errorf("packed it is encoded differently, with error %v", err)
		}
	}
}

func unpacked(p *Packed) (all []tree.Entry, err error) {
	for e, err := range p.Entries() {
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
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
		if new(Packed).UnmarshalBinary(b) == nil {
			t.Errorf("with bit %d flipped it was taken, packed", i)
		}
		if got.Format != Zstd || got.Entries != nil {
			t.Fatal("an index was changed by a failure")
		}
		b[i/8] ^= 1 << (i % 8)
	}
}

// TestPackedLies has an entry whose content there is none of.
func TestPackedLies(t *testing.T) {
	_, ix := samples(t)
	i := slices.IndexFunc(ix.Entries, func(e tree.Entry) bool { return e.Type == tree.Regular && e.Size > 0 })
	for _, lie := range []func(e *tree.Entry){func(e *tree.Entry) { e.Content = int32(len(ix.Contents)) }, func(e *tree.Entry) { e.Size++ }} {
		before := ix.Entries[i]
		lie(&ix.Entries[i])
		p := ix.Pack()
		ix.Entries[i] = before
		n := 0
		var err error
		for _, err = range p.Entries() {
			n++
		}
		if err != errCodec || n != i+1 {
			t.Errorf("entry %d ends it with %v, want %d and %v", n-1, err, i, errCodec)
		}
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
		b = append(bytes.Clone(b), sum[:]...)
		var p Packed
		packed := p.UnmarshalBinary(b)
		if packed == nil {
			_, packed = unpacked(&p)
		}
		err := ix.UnmarshalBinary(b)
		if (err == nil) != (packed == nil) {
			t.Fatalf("decoded: %v; packed: %v", err, packed)
		}
		if err != nil {
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
