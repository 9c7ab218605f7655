package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/tree"
)

// TestLargeEntries has names, targets and attributes as long as Linux has them.
func TestLargeEntries(t *testing.T) {
	records := map[string]string{"SCHILY.xattr.user.big": strings.Repeat("\xff", 64<<10), "comment": strings.Repeat("c", 500_000)}
	many := map[string]string{}
	for i := range 1000 {
		many[fmt.Sprint("SCHILY.xattr.user.", i)] = "v"
	}
	src := makeTar(t,
		reg(strings.Repeat("d/", 2047)+"f", "deep"),
		member{tar.Header{Typeflag: tar.TypeDir, Name: strings.Repeat("n", 255), PAXRecords: records}, ""},
		member{tar.Header{Typeflag: tar.TypeDir, Name: strings.Repeat("ä", 127), PAXRecords: many}, ""},
		member{tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: strings.Repeat("../", 1365)}, ""},
		member{tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: strings.Repeat("d/", 2047) + "f"}, ""},
	)
	for _, f := range tocForms() {
		b, d, diffID := f.make(t, src)
		ix := sameAsTar(t, b, d, diffID)
		if len(ix.Entries) != 5 || len(ix.Entries[0].Name) != 4095 || len(ix.Entries[1].Xattrs[0].Value) != 64<<10 || len(ix.Entries[2].Xattrs) != 1000 {
			t.Errorf("%s: %d entries", f.name, len(ix.Entries))
		}
	}
}

// TestLargeDirectory has a directory of 100,000 entries.
func TestLargeDirectory(t *testing.T) {
	const n = 100_000
	members := make([]member, n)
	for i := range members {
		members[i] = member{header(fmt.Sprintf("d/%d", i), 0), ""}
	}
	b, d, diffID := asItIs(t, makeTar(t, members...))
	if ix := sameAsTar(t, b, d, diffID); len(ix.Entries) != n || ix.Entries[n-1].Name != "d/99999" {
		t.Errorf("%d entries", len(ix.Entries))
	}
}

// TestHugeFiles reads files beyond 4 GiB, and beyond 8 GiB, where octal sizes end; they are holes but for a few bytes.
func TestHugeFiles(t *testing.T) {
	five := append(oldSparse("huge", 5<<30-512, 5<<30), make([]byte, 1024)...)
	for _, tt := range []struct {
		name  string
		plain []byte // or that of testdata/tars
		size  int64
		end   string
	}{
		{"5 GiB", five, 5 << 30, "xxx"},
		{"sparse-gnu-huge", nil, 8193 << 20, "\x00end"},
		{"sparse-1.0-huge", nil, 8193 << 20, "\x00end"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			packed, plain := tt.plain, tt.plain
			if plain == nil {
				packed, plain = unzipped(t, tt.name)
			}
			var spool, leaves last
			ix, err := Stream(t.Context(), bytes.NewReader(packed), descriptor(packed), digestOf(plain), &spool, &leaves, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if len(ix.Entries) != 1 || ix.Entries[0].Name != "huge" || ix.Entries[0].Size != tt.size {
				t.Errorf("entries %v", ix.Entries)
			}
			if spool.n > 64<<10 || spool.off+int64(len(spool.b)) != tt.size || !bytes.HasSuffix(spool.b, []byte(tt.end)) {
				t.Errorf("%d bytes in the spool, the last at %d", spool.n, spool.off+int64(len(spool.b)))
			}
			roundTrip(t, ix)
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

var _ blob.Source = far{}

// far is a blob whose bytes begin behind some zeros.
type far struct {
	zeros int64
	b     []byte
}

func (f far) Size() int64 { return f.zeros + int64(len(f.b)) }

func (f far) Fetch(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if err := blob.CheckRange(f.Size(), off, n); err != nil {
		return nil, err
	}
	zeros := max(0, f.zeros-off)
	r := io.MultiReader(bytes.NewReader(make([]byte, zeros)), bytes.NewReader(f.b[max(0, off-f.zeros):]))
	return io.NopCloser(io.LimitReader(r, n)), nil
}

// TestHugeTOC has a file of 9 GiB, whose chunks are the same bytes over and over, in a blob of more than 5 GiB.
func TestHugeTOC(t *testing.T) {
	const zeros, size, piece = 5 << 30, 9 << 30, 16 << 20
	data := gz(t, make([]byte, piece))
	sum := digestOf(make([]byte, piece)).String()
	var toc strings.Builder
	fmt.Fprintf(&toc, `{"entries":[{"name":"huge","type":"reg","size":%d,"offset":%d,"chunkSize":%d,"chunkDigest":%q}`, size, zeros, piece, sum)
	for off := piece; off < size; off += piece {
		fmt.Fprintf(&toc, `,{"name":"huge","type":"chunk","offset":%d,"chunkOffset":%d,"chunkSize":%d,"chunkDigest":%q}`, zeros, off, piece, sum)
	}
	toc.WriteString(`]}`)
	sealed := seal(t, data, toc.String(), false)
	footer := estargz.CreateGzipFooter([]byte("SG\x16\x00" + fmt.Sprintf("%016xSTARGZ", zeros+len(data))))
	src := far{zeros, append(sealed[:len(sealed)-footerSize], footer...)}
	d := descriptor(nil)
	d.Annotations = map[string]string{tocDigest: digestOf([]byte(toc.String())).String()}
	ix, err := ReadTOC(t.Context(), src, d, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	sameEntries(t, ix.Entries, []tree.Entry{{Name: "huge", Type: tree.Regular, Size: size}})
	checkTOC(t, ix, src.Size())
	roundTrip(t, ix)
	r, err := src.Fetch(t.Context(), zeros, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	read := int64(0)
	err = ReadChunks(t.Context(), Gzip, r, zeros, ix.Chunks, func(i int, p []byte) error {
		if ix.Chunks[i].Off != read || i == 0 && sha256.Sum256(p) != ix.Chunks[0].Digest {
			t.Errorf("chunk %d: %d bytes at %d", i, len(p), ix.Chunks[i].Off)
		}
		read += int64(len(p))
		return nil
	})
	if err != nil || read != size {
		t.Errorf("%d bytes, %v", read, err)
	}
}
