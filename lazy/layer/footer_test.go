package layer

import (
	"fmt"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
)

func TestParseFooter(t *testing.T) {
	current := estargz.CreateGzipFooter([]byte("SG\x16\x00" + fmt.Sprintf("%016xSTARGZ", 1234567)))
	legacy := estargz.CreateGzipFooter([]byte(fmt.Sprintf("%016xSTARGZ", 7)))
	for _, tt := range []struct {
		name      string
		tail      []byte
		off, size int64
		ok        bool
	}{
		{"eStargz", current, 1234567, footerSize, true},
		{"behind other bytes", append(make([]byte, 1000), current...), 1234567, footerSize, true},
		{"stargz", legacy, 7, legacyFooterSize, true},
		{"stargz behind other bytes", append(make([]byte, 1000), legacy...), 7, legacyFooterSize, true},
		{"cut", current[1:], 0, 0, false},
		{"nothing", nil, 0, 0, false},
		{"no offset in the blob", estargz.CreateGzipFooter([]byte("SG\x16\x00ffffffffffffffffSTARGZ")), 0, 0, false},
		{"no digits", estargz.CreateGzipFooter([]byte("SG\x16\x00+00000000000000fSTARGZ")), 0, 0, false},
		{"another subfield", estargz.CreateGzipFooter([]byte("XX\x16\x00000000000000000fSTARGZ")), 0, 0, false},
		{"a subfield of another length", estargz.CreateGzipFooter([]byte("SG\x15\x00000000000000000fSTARGZ")), 0, 0, false},
		{"extra field beyond the end", append([]byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0, 255, 255}, make([]byte, 39)...), 0, 0, false},
		{"a short subfield that claims more", append([]byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0, 4, 0, 'S', 'G', 22, 0}, make([]byte, 35)...), 0, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			off, size, ok := parseFooter(tt.tail)
			if ok != tt.ok || ok && (off != tt.off || size != tt.size) {
				t.Errorf("got %d, %d, %v", off, size, ok)
			}
		})
	}
}

// FuzzParseFooter compares with the estargz package where that doesn't panic.
func FuzzParseFooter(f *testing.F) {
	f.Add(estargz.CreateGzipFooter([]byte("SG\x16\x00000000000000000fSTARGZ")))
	f.Add(estargz.CreateGzipFooter([]byte("000000000000000fSTARGZ")))
	f.Fuzz(func(t *testing.T, b []byte) {
		off, size, ok := parseFooter(b)
		var d estargz.Decompressor = new(estargz.GzipDecompressor)
		if size == legacyFooterSize {
			d = new(estargz.LegacyGzipDecompressor)
		}
		if !ok || off < 0 || size > int64(len(b)) {
			if ok {
				t.Fatalf("offset %d, size %d of %d", off, size, len(b))
			}
			return
		}
		if _, want, _, err := d.ParseFooter(b[int64(len(b))-size:]); err == nil && want != off {
			t.Fatalf("offset %d, want %d", off, want)
		}
	})
}
