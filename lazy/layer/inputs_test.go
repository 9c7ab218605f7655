package layer

import (
	"archive/tar"
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

	"github.com/pexfs/pex/lazy/blob/blobtest"
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
		})
	}
}

// TestHugeFiles reads files beyond 8 GiB, where octal sizes end; they are holes but for three bytes.
func TestHugeFiles(t *testing.T) {
	const size = 8193 << 20
	for _, name := range []string{"sparse-gnu-huge", "sparse-1.0-huge"} {
		t.Run(name, func(t *testing.T) {
			packed, plain := unzipped(t, name)
			var spool, leaves last
			ix, err := Stream(t.Context(), bytes.NewReader(packed), descriptor(packed), digestOf(plain), &spool, &leaves, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			want := []tree.Entry{{Name: "huge", Type: tree.Regular, Mode: 0o644, UID: 1000, GID: 1001, Size: size, Mtime: tree.Time{Sec: 1e9}}}
			sameEntries(t, ix.Entries, want)
			if spool.n > 64<<10 || spool.off+int64(len(spool.b)) != size || !bytes.HasSuffix(spool.b, []byte("\x00end")) {
				t.Errorf("%d bytes in the spool, the last at %d", spool.n, spool.off+int64(len(spool.b)))
			}
		})
	}
}

// last keeps what was written last, and counts.
type last struct {
	b   []byte
	off int64
	n   int
}

func (l *last) WriteAt(p []byte, off int64) (int, error) {
	l.b, l.off, l.n = bytes.Clone(p), off, l.n+len(p)
	return len(p), nil
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

func TestCompressedForms(t *testing.T) {
	src := makeTar(t, sample()...)
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
		{"gzip with every field of the header", gzHeader(t, src, true)},
		{"gzip members, each with every field of the header", slices.Concat(gzHeader(t, a, true), gzHeader(t, nil, true), gzHeader(t, b, true))},
		{"gzip of many members", odd},
		{"gzip, empty members first, between and last", slices.Concat(empty, empty, gz(t, a), empty, gz(t, b), empty)},
		{"gzip, a thousand empty members", slices.Concat(gz(t, a), bytes.Repeat(empty, 1000), gz(t, b))},
		{"gzip, stored", gzLevel(t, src, gzip.NoCompression)},
		{"gzip, Huffman only", gzLevel(t, src, gzip.HuffmanOnly)},
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
			want, err := stream(t, src, digestOf(src), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want.Index, got.Index); d != "" || !bytes.Equal(want.spool.b, got.spool.b) {
				t.Errorf("other than as plain tar:\n%s", d)
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

// TestTails has tars that something follows. The diffID is that of all of it, and none of it is read as entries.
func TestTails(t *testing.T) {
	whole := makeTar(t, reg("a", "abc"))
	for _, tt := range []struct {
		name string
		tail []byte
	}{
		{"blocks of zeros up to 10,240 bytes", make([]byte, 10240-len(whole)%10240)},
		{"a megabyte of zeros", make([]byte, 1<<20)},
		{"garbage", []byte(text(5000, 1))},
		{"another tar", makeTar(t, reg("b", "hidden"))},
		{"zeros, then another tar", append(make([]byte, 8192), makeTar(t, reg("b", "hidden"))...)},
	} {
		src := slices.Concat(whole, tt.tail)
		for form, b := range map[string][]byte{"plain": src, "gzip": gz(t, src), "a member for the tail": gz(t, whole, tt.tail), "zstd": zst(t, src)} {
			t.Run(tt.name+", "+form, func(t *testing.T) {
				got, err := stream(t, b, digestOf(src), Limits{})
				if err != nil {
					t.Fatal(err)
				}
				if len(got.Entries) != 1 || got.content(got.Entries[0]) != "abc" {
					t.Errorf("entries %v", got.Entries)
				}
				if _, err := stream(t, b, digestOf(whole), Limits{}); err == nil {
					t.Error("the diffID of the tar without its tail was taken")
				}
			})
		}
	}
}

// TestLargeEntries has what is large but allowed.
func TestLargeEntries(t *testing.T) {
	records := map[string]string{"SCHILY.xattr.user.big": strings.Repeat("\xff", 64<<10), "comment": strings.Repeat("c", 500_000)}
	src := makeTar(t,
		member{tar.Header{Typeflag: tar.TypeDir, Name: strings.Repeat("d/", 2040), Format: tar.FormatPAX}, ""},
		member{tar.Header{Typeflag: tar.TypeDir, Name: strings.Repeat("n", 255), PAXRecords: records}, ""},
		member{tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: strings.Repeat("../", 1365)}, ""},
	)
	for _, f := range tocForms() {
		b, d, diffID := f.make(t, src)
		s, err := stream(t, b, diffID, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		ix, err := ReadTOC(t.Context(), blobtest.Bytes(b), d)
		if err != nil {
			t.Fatal(err)
		}
		sameEntries(t, ix.Entries, s.Entries)
		if len(ix.Entries) != 3 || len(ix.Entries[1].Xattrs[0].Value) != 64<<10 {
			t.Errorf("%s: %d entries", f.name, len(ix.Entries))
		}
	}
}
