package layer

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/pexfs/pex/lazy/tree"
)

// unzipped is an archive of testdata/tars, which make.sh there makes, and the archive inflated.
func unzipped(t testing.TB, name string) (packed, plain []byte) {
	t.Helper()
	packed, err := os.ReadFile("testdata/tars/" + name + ".tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(z); err != nil {
		t.Fatal(err)
	}
	return packed, b.Bytes()
}

// TestGNUTar reads what GNU tar writes in each of its formats.
func TestGNUTar(t *testing.T) {
	whole, fraction := tree.Time{Sec: 1e9}, tree.Time{Sec: 1e9, Nsec: 250_000_000}
	deep := "d/" + strings.Repeat("1", 30) + "/" + strings.Repeat("2", 30) + "/" + strings.Repeat("3", 30)
	long := deep + "/" + strings.Repeat("n", 120)
	pieces := make([]byte, 1_000_000)
	for i := byte(1); i <= 7; i++ {
		copy(pieces[int(i)*131072:], "piece "+string('0'+i))
	}
	file := func(name, body string, at tree.Time) tree.Entry {
		return tree.Entry{Name: name, Type: tree.Regular, Mode: 0o644, UID: 1000, GID: 1001, Size: int64(len(body)), Mtime: at}
	}
	longs := func(at tree.Time) []tree.Entry {
		return []tree.Entry{
			file(long, "hello\n", at),
			{Name: "h", Linkname: long, Type: tree.HardLink, Mode: 0o644, UID: 1000, GID: 1001, Mtime: at},
			{Name: "l", Linkname: long + "/" + deep, Type: tree.Symlink, Mode: 0o777, UID: 1000, GID: 1001, Mtime: at},
		}
	}
	f := file("f", "abc", tree.Time{Sec: -1e9})
	sparse := []tree.Entry{file("s", string(pieces), whole), f}
	for _, tt := range []struct {
		name    string
		entries []tree.Entry
		bodies  []string // of the files in their order
	}{
		{"v7", []tree.Entry{file("f", "abc", whole), {Name: "tmp/", Type: tree.Dir, Mode: 0o1777, UID: 1000, GID: 1001, Mtime: whole}}, []string{"abc"}},
		{"ustar-prefix", []tree.Entry{
			file(strings.Repeat("p", 100)+"/short", "prefix", whole),
			{Name: "c", Type: tree.Char, Mode: 0o644, UID: 1000, GID: 1001, Mtime: whole, Major: 5, Minor: 1},
			{Name: "b", Type: tree.Block, Mode: 0o600, UID: 1000, GID: 1001, Mtime: whole, Major: 259, Minor: 70000},
			{Name: "p", Type: tree.Fifo, Mode: 0o600, UID: 1000, GID: 1001, Mtime: whole},
		}, []string{"prefix"}},
		{"gnu-long", longs(whole), []string{"hello\n"}},
		{"pax-long", longs(fraction), []string{"hello\n"}},
		{"gnu-base256", []tree.Entry{{Name: "f", Type: tree.Regular, Mode: 0o644, UID: 3_000_000, GID: 1<<32 - 2, Size: 3, Mtime: tree.Time{Sec: -1e9}}}, []string{"abc"}},
		{"sparse-gnu", sparse, []string{string(pieces), "abc"}},
		{"sparse-0.0", sparse, []string{string(pieces), "abc"}},
		{"sparse-0.1", sparse, []string{string(pieces), "abc"}},
		{"sparse-1.0", sparse, []string{string(pieces), "abc"}},
		{"pax-xattrs", []tree.Entry{{Name: "x", Type: tree.Regular, Mode: 0o644, UID: 1000, GID: 1001, Size: 1, Mtime: whole, Xattrs: []tree.Xattr{
			{Name: "security.capability", Value: append([]byte{1, 0, 0, 2, 0, 4}, make([]byte, 14)...)}, {Name: "user.a", Value: []byte{0, 0xff, '\n'}},
		}}}, []string{"x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			packed, plain := unzipped(t, tt.name)
			got, err := stream(t, packed, digestOf(plain), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			sameEntries(t, got.Entries, tt.entries)
			var bodies []string
			for _, e := range got.Entries {
				if e.Type == tree.Regular {
					bodies = append(bodies, got.content(e))
				}
			}
			if !slices.Equal(bodies, tt.bodies) {
				t.Error("other contents")
			}
			got.check(t)
			if strings.HasPrefix(tt.name, "sparse") {
				return // what makes TOCs writes no sparse files
			}
			for _, f := range tocForms() {
				b, d, diffID := f.make(t, plain)
				ix := sameAsTar(t, b, d, diffID)
				if len(ix.Entries) != len(tt.entries) {
					t.Errorf("%s: %d entries", f.name, len(ix.Entries))
				}
			}
		})
	}
}

// gzHeader is a gzip member whose header has all optional fields (RFC 1952, section 2.3), the CRC of the header too.
func gzHeader(t testing.TB, data []byte, goodCRC bool) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Header = gzip.Header{Name: "layer.tar", Comment: "a comment", Extra: []byte("XX\x02\x00ab"), ModTime: time.Unix(1e9, 0), OS: 3}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	const fhcrc = 1 << 1
	m := b.Bytes()
	m[3] |= fhcrc
	n := bytes.Index(m, []byte("a comment\x00")) + len("a comment\x00")
	sum := uint16(crc32.ChecksumIEEE(m[:n]))
	if !goodCRC {
		sum++
	}
	return slices.Concat(m[:n], binary.LittleEndian.AppendUint16(nil, sum), m[n:])
}

// zstFrame is a zstd frame without content size and checksum.
func zstFrame(t testing.TB, data []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, append(opts, zstd.WithEncoderCRC(false), zstd.WithSingleSegment(false))...)
	if err != nil {
		t.Fatal(err)
	}
	// in pieces: then the size isn't known when the header is written
	for p := range slices.Chunk(data, 1000) {
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var h zstd.Header
	if err := h.Decode(b.Bytes()); err != nil || h.HasFCS || h.HasCheckSum || h.SingleSegment {
		t.Fatalf("header %+v, %v", h, err)
	}
	return b.Bytes()
}

// TestCompressedForms reads the same tar in every form that gzip and zstd have.
func TestCompressedForms(t *testing.T) {
	src := makeTar(t, sample()...)
	want, err := stream(t, src, digestOf(src), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want.check(t)
	for i, m := range sample() {
		if e := want.Entries[i]; e.Name != m.Name || want.content(e) != m.body {
			t.Errorf("%s has another content", e.Name)
		}
	}
	a, b := src[:len(src)/3], src[len(src)/3:]
	empty := gz(t, nil)
	var odd []byte // a member for every 1,001 bytes
	for p := range slices.Chunk(src, 1001) {
		odd = append(odd, gz(t, p)...)
	}
	for _, tt := range []struct {
		name string
		blob []byte
	}{
		{"gzip", gz(t, src)},
		{"gzip with every field of the header", gzHeader(t, src, true)},
		{"gzip members, each with every field of the header", slices.Concat(gzHeader(t, a, true), gzHeader(t, nil, true), gzHeader(t, b, true))},
		{"gzip of many members", odd},
		{"gzip, empty members first, between and last", slices.Concat(empty, empty, gz(t, a), empty, gz(t, b), empty)},
		{"gzip, a thousand empty members", slices.Concat(gz(t, a), bytes.Repeat(empty, 1000), gz(t, b))},
		{"gzip, stored", gzLevel(t, src, gzip.NoCompression)},
		{"gzip, Huffman only", gzLevel(t, src, gzip.HuffmanOnly)},
		{"zstd", zst(t, src)},
		{"zstd without content size", zstFrame(t, src)},
		{"zstd frames with and without content size", slices.Concat(zstFrame(t, a), zst(t, b))},
		{"zstd with a window of 64 MiB", zstFrame(t, src, zstd.WithWindowSize(64<<20))},
		{"zstd, empty frames first, between and last", slices.Concat(zst(t, nil), zstFrame(t, a), zst(t, nil), zstFrame(t, b), zst(t, nil))},
		{"zstd, skippable frames of all sixteen kinds", skippables(zst(t, a), zst(t, b))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := stream(t, tt.blob, digestOf(src), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want.Index, got.Index); d != "" {
				t.Errorf("other than as plain tar:\n%s", d)
			}
			if !bytes.Equal(want.spool.b, got.spool.b) || !bytes.Equal(want.leaves.b, got.leaves.b) {
				t.Error("spool or leaves are other than as plain tar")
			}
		})
	}
}

func gzLevel(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
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

// skippables puts skippable frames around and between others.
func skippables(frames ...[]byte) (b []byte) {
	for i := range byte(16) {
		s := skippable(make([]byte, int(i)*100))
		s[0] = 0x50 + i
		b = append(b, s...)
		if int(i)%8 == 0 {
			b = append(b, frames[i/8]...)
		}
	}
	return b
}

// TestTails has tars that something follows, or that lack what should. The diffID is that of all of it, and nothing behind the end is
// read as entries.
func TestTails(t *testing.T) {
	whole := makeTar(t, reg("a", "abc"))
	bare := whole[:len(whole)-1024]
	for _, tt := range []struct {
		name    string
		tar     []byte
		entries int
	}{
		{"nothing", nil, 0},
		{"only the end", make([]byte, 1024), 0},
		{"no blocks of zeros", bare, 1},
		{"one block of zeros", bare[:len(bare)+512], 1},
		{"blocks of zeros up to 10,240 bytes", slices.Concat(bare, make([]byte, 10240-len(bare))), 1},
		{"a megabyte of zeros", slices.Concat(bare, make([]byte, 1<<20)), 1},
		{"garbage", slices.Concat(whole, []byte(text(5000, 1))), 1},
		{"another tar", slices.Concat(whole, makeTar(t, reg("b", "hidden"))), 1},
		{"zeros, then another tar", slices.Concat(whole, make([]byte, 8192), makeTar(t, reg("b", "hidden"))), 1},
	} {
		blobs := map[string][]byte{"plain": tt.tar, "gzip": gz(t, tt.tar), "a member for the tail": gz(t, tt.tar[:len(tt.tar)/2], tt.tar[len(tt.tar)/2:])}
		if len(tt.tar) > 0 { // of nothing the encoder makes nothing
			blobs["zstd"] = zst(t, tt.tar)
		}
		for form, b := range blobs {
			t.Run(tt.name+", "+form, func(t *testing.T) {
				got, err := stream(t, b, digestOf(tt.tar), Limits{})
				if err != nil {
					t.Fatal(err)
				}
				if len(got.Entries) != tt.entries || tt.entries == 1 && got.content(got.Entries[0]) != "abc" {
					t.Errorf("entries %v", got.Entries)
				}
				got.check(t)
				if _, err := stream(t, b, digestOf(tt.tar[:len(tt.tar)*2/3]), Limits{}); err == nil && len(tt.tar) > 0 {
					t.Error("the diffID of the tar without its tail was taken")
				}
			})
		}
		for _, f := range tocForms() {
			if f.asIs && tt.name == "one block of zeros" {
				continue // the TOC's entry would follow one block of zeros, where no reader of tars goes on
			}
			t.Run(tt.name+", "+f.name, func(t *testing.T) {
				b, d, diffID := f.make(t, tt.tar)
				if ix := sameAsTar(t, b, d, diffID); len(ix.Entries) != tt.entries {
					t.Errorf("entries %v", ix.Entries)
				}
			})
		}
	}
}
