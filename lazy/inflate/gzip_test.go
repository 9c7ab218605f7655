package inflate

import (
	"bytes"
	"compress/flate"
	stdgzip "compress/gzip"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
)

// deflated is data as gzip of some level.
func deflated(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := stdgzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// samples are data of many kinds.
func samples(t testing.TB) map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	skewed := make([]byte, 1<<20) // long codes
	for i := range skewed {
		skewed[i] = byte(r.ExpFloat64() * 12)
	}
	words := make([]byte, 0, 1<<21)
	for len(words) < 1<<21-100 {
		words = append(words, noise[r.IntN(2000)*7:][:r.IntN(40)]...)
	}
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	near := make([]byte, 1<<20) // matches at all small distances
	for i := range near {
		if near[i] = byte(r.Uint32()); i > 300 && r.IntN(4) > 0 {
			near[i] = near[i-1-i>>12%20]
		}
	}
	return map[string][]byte{
		"nothing": nil, "a byte": {7}, "zeros": make([]byte, 3<<20), "noise": noise, "skewed": skewed, "words": words, "near": near,
		"program": exe[:min(len(exe), 6<<20)],
	}
}

func TestReader(t *testing.T) {
	for name, data := range samples(t) {
		for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, 1, 6, 9} {
			z := deflated(t, data, level)
			for how, r := range map[string]func(io.Reader) ([]byte, error){
				"WriteTo": func(r io.Reader) ([]byte, error) {
					var b bytes.Buffer
					_, err := NewReader(r).WriteTo(&b)
					return b.Bytes(), err
				},
				"Next":   func(r io.Reader) ([]byte, error) { return nexts(NewReader(r)) },
				"Read":   func(r io.Reader) ([]byte, error) { return io.ReadAll(iotest.HalfReader(NewReader(r))) },
				"slowly": func(r io.Reader) ([]byte, error) { return io.ReadAll(NewReader(iotest.HalfReader(r))) },
			} {
				if got, err := r(bytes.NewReader(z)); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s, level %d, %s: %d bytes of %d, %v", name, level, how, len(got), len(data), err)
				}
			}
		}
	}
}

// nexts reads all by Next, with two buffers; what the reader doesn't own is overwritten.
func nexts(z *Reader) (all []byte, err error) {
	spare := make([]byte, BufferSize)
	for {
		mem, p, err := z.Next(spare)
		if err == io.EOF {
			return all, nil
		} else if err != nil {
			return all, err
		}
		all = append(all, p...)
		for i := range mem {
			mem[i] = 0xa5
		}
		spare = mem
	}
}

// both gives what the standard library and this package make of b.
func both(z *Reader, b []byte, single bool) (want, got []byte, werr, gerr error) {
	if r, err := stdgzip.NewReader(bytes.NewReader(b)); err != nil {
		werr = err
	} else {
		r.Multistream(!single)
		want, werr = io.ReadAll(r)
	}
	z.Reset(bytes.NewReader(b))
	z.Multistream(!single)
	got, gerr = io.ReadAll(z)
	if werr == io.EOF { // of an empty input the standard library says so
		werr = io.ErrUnexpectedEOF
	}
	return want, got, werr, gerr
}

// same tells how the two differ. Of a bad stream, both must give a prefix of the same bytes.
func same(z *Reader, b []byte, single bool) error {
	want, got, werr, gerr := both(z, b, single)
	switch {
	case (werr == nil) != (gerr == nil):
		return fmt.Errorf("the standard library: %v; here: %v", werr, gerr)
	case werr == nil && !bytes.Equal(want, got):
		return fmt.Errorf("%d bytes, not %d, or others", len(got), len(want))
	case !bytes.HasPrefix(want, got) && !bytes.HasPrefix(got, want):
		return errors.New("other bytes before the error")
	case werr != nil && werr != io.ErrUnexpectedEOF && gerr != io.ErrUnexpectedEOF: // of what is both cut and wrong either may be said
		if !errors.Is(gerr, ErrCorrupt) && !errors.Is(gerr, ErrHeader) && !errors.Is(gerr, ErrChecksum) {
			return fmt.Errorf("an error of another kind: %v", gerr)
		}
		if (werr == stdgzip.ErrChecksum) != errors.Is(gerr, ErrChecksum) || (werr == stdgzip.ErrHeader) != errors.Is(gerr, ErrHeader) {
			return fmt.Errorf("the standard library: %v; here: %v", werr, gerr)
		}
	}
	return nil
}

// header is a member's, with everything in it.
func header(t testing.TB, sum bool) []byte {
	t.Helper()
	h := []byte{0x1f, 0x8b, 8, flagExtra | flagName | flagComment, 1, 2, 3, 4, 0, 255, 3, 0, 'a', 'b', 'c', 'n', 0, 'c', 0}
	if sum {
		h[3] |= flagCRC
		crc := crc32.ChecksumIEEE(h)
		h = append(h, byte(crc), byte(crc>>8))
	}
	return h
}

func TestMembers(t *testing.T) {
	one, empty := deflated(t, []byte("hello, hello, hello"), 6), deflated(t, nil, 6)
	bad := bytes.Clone(one)
	bad[len(bad)-1] ^= 1
	sum := append(header(t, true), one[10:]...)
	badSum := bytes.Clone(sum)
	badSum[20] ^= 1
	for name, b := range map[string][]byte{
		"none": nil, "one": one, "several": bytes.Join([][]byte{one, empty, one, empty, empty}, nil), "garbage behind": append(bytes.Clone(one), "xyz"...),
		"zeros behind": append(bytes.Clone(one), make([]byte, 512)...), "checksum": bad, "second's checksum": append(bytes.Clone(one), bad...),
		"all of a header": append(header(t, false), one[10:]...), "header's checksum": sum, "wrong header's checksum": badSum,
		"endless name": append([]byte{0x1f, 0x8b, 8, flagName, 0, 0, 0, 0, 0, 0}, bytes.Repeat([]byte{'a'}, 1000)...),
	} {
		for _, single := range []bool{false, true} {
			if err := same(new(Reader), b, single); err != nil {
				t.Errorf("%s, single %t: %v", name, single, err)
			}
		}
	}
}

// TestDamage flips each bit of a small stream, and ends it at each byte.
func TestDamage(t *testing.T) {
	data := samples(t)["program"][4000:6000]
	r := new(Reader)
	for _, level := range []int{flate.HuffmanOnly, 0, 1, 9} {
		z := deflated(t, data, level)
		for i := range z {
			if err := same(r, z[:i], false); err != nil {
				t.Errorf("level %d, cut at %d: %v", level, i, err)
			}
			if _, _, _, err := both(r, z[:i], false); err != io.ErrUnexpectedEOF {
				t.Errorf("level %d, cut at %d: %v", level, i, err)
			}
			for bit := range 8 {
				z[i] ^= 1 << bit
				if err := same(r, z, false); err != nil {
					t.Errorf("level %d, bit %d of byte %d: %v", level, bit, i, err)
				}
				z[i] ^= 1 << bit
			}
		}
	}
}

func TestInputError(t *testing.T) {
	z := deflated(t, samples(t)["words"], 6)
	want := errors.New("the network's")
	_, err := io.ReadAll(NewReader(io.MultiReader(bytes.NewReader(z[:len(z)/2]), iotest.ErrReader(want))))
	if err != want {
		t.Errorf("got %v", err)
	}
	if _, err := io.ReadAll(NewReader(neverReader{})); err != io.ErrNoProgress {
		t.Errorf("of a reader that gives nothing: %v", err)
	}
}

type neverReader struct{}

func (neverReader) Read([]byte) (int, error) { return 0, nil }

func FuzzReader(f *testing.F) {
	for _, data := range samples(f) {
		data = data[:min(len(data), 3000)]
		for _, level := range []int{flate.HuffmanOnly, 0, 1, 6, 9} {
			f.Add(deflated(f, data, level))
		}
	}
	f.Add(append(header(f, true), deflated(f, []byte("x"), 6)[10:]...))
	z := new(Reader)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		if err := same(z, b, false); err != nil {
			t.Fatal(err)
		}
		z.Reset(bytes.NewReader(b))
		read, rerr := io.ReadAll(z)
		z.Reset(bytes.NewReader(b))
		if next, err := nexts(z); !bytes.Equal(next, read) || (err == nil) != (rerr == nil) {
			t.Fatalf("by Next %d bytes, %v; by Read %d bytes, %v", len(next), err, len(read), rerr)
		}
		// what nothing was found wrong with without a trailer and a header, to get at the blocks
		if err := same(z, bytes.Join([][]byte{{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, b, make([]byte, 8)}, nil), true); err != nil {
			t.Fatal("as blocks: ", err)
		}
	})
}

func BenchmarkReader(b *testing.B) {
	all := samples(b)
	for _, name := range []string{"program", "words", "skewed"} {
		data := all[name]
		z := deflated(b, data, 6)
		for _, impl := range []struct {
			name string
			read func() error
		}{
			{"this", func() error { _, err := NewReader(bytes.NewReader(z)).WriteTo(io.Discard); return err }},
			{"klauspost", func() error {
				r, err := gzip.NewReader(bytes.NewReader(z))
				if err != nil {
					return err
				}
				_, err = io.Copy(io.Discard, r)
				return err
			}},
			{"stdlib", func() error {
				r, err := stdgzip.NewReader(bytes.NewReader(z))
				if err != nil {
					return err
				}
				_, err = io.Copy(io.Discard, r)
				return err
			}},
		} {
			b.Run(name+"/"+impl.name, func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				for b.Loop() {
					if err := impl.read(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
