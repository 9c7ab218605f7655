package kernel

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"testing"
)

// unhex decodes text that was made with the reference tool, lz4 -l -9.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	lz4Lines = "02214c1855000000f1166c696e652030206f66206120746578742074686174207265706561747320697473656c660a25001f312500111f" +
		"322500111f332500111f342500111f352500111f3625000c0f0301ffffffffb15073656c660a"
	lz4Random = "02214c182a000000f0194420823cfde6f1c26b30f90ec7dd01e4887534a20f0b0d04c36ed80e71e0fd77b07670eb940bd533"
)

func lines() []byte {
	var b bytes.Buffer
	for i := range 40 {
		fmt.Fprintf(&b, "line %d of a text that repeats itself\n", i%7)
	}
	return b.Bytes()
}

func TestUnpackLZ4(t *testing.T) {
	for _, tt := range []struct {
		name string
		src  []byte
		want []byte
	}{
		{"matches, overlapping ones too", unhex(t, lz4Lines), lines()},
		{"literals", unhex(t, lz4Random), unhex(t, lz4Random)[4+4+2:]},
		{"nothing", unhex(t, "02214c18"), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := unpackLZ4(tt.src, len(tt.want))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestUnpackLZ4Blocks has more than one block: 8 MiB of one byte, twice.
func TestUnpackLZ4Blocks(t *testing.T) {
	// One literal, then a match at distance 1 for all but 5 of the other bytes, then 5 literals.
	n := lz4Block - 6 - 4 - 15
	block := append([]byte{0x1f, 'z', 1, 0}, bytes.Repeat([]byte{255}, n/255)...)
	block = append(block, byte(n%255), 0x50, 'z', 'z', 'z', 'z', 'z')
	src := []byte(lz4Magic)
	for range 2 {
		src = append(src, byte(len(block)), byte(len(block)>>8), byte(len(block)>>16), 0)
		src = append(src, block...)
	}
	got, err := unpackLZ4(src, 2*lz4Block)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, bytes.Repeat([]byte{'z'}, 2*lz4Block)) {
		t.Error("wrong bytes")
	}
}

func TestUnpackLZ4Malformed(t *testing.T) {
	good := unhex(t, lz4Lines)
	for _, tt := range []struct {
		name string
		src  []byte
		want int
	}{
		{"empty", nil, 0},
		{"magic", []byte("\x04\x22\x4d\x18"), 10},
		{"too large for its bytes", good, 1 << 30},
		{"shorter than it says", good, len(lines()) - 1},
		{"longer than it says", good, len(lines()) + 1},
		{"truncated", good[:len(good)-1], len(lines())},
		{"block length", unhex(t, "02214c18ffffffff00"), 1},
		{"match without anything before it", unhex(t, "02214c180300000000010000"), 4},
		{"distance 0", unhex(t, "02214c180500000010610000500000"), 5},
		{"literals run out", unhex(t, "02214c180200000050610000"), 5},
		{"endless length", unhex(t, "02214c1804000000f0ffffff"), 300},
		{"trailing bytes", append(bytes.Clone(good), 0), len(lines())},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := unpackLZ4(tt.src, tt.want); !errors.Is(err, errLZ4) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func FuzzUnpackLZ4(f *testing.F) {
	f.Add(unhex(f, lz4Lines), len(lines()))
	f.Add(unhex(f, lz4Random), 40)
	f.Add([]byte(lz4Magic), 0)
	f.Fuzz(func(t *testing.T, src []byte, want int) {
		if want > 1<<24 {
			return
		}
		got, err := unpackLZ4(src, want)
		if err == nil && len(got) != want {
			t.Errorf("%d bytes, want %d", len(got), want)
		}
	})
}
