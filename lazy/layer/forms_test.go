package layer

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/pexfs/pex/lazy/blob/blobtest"
)

// form is a way to make a layer with a TOC of a tar: its blob, its descriptor with the annotations, and its diffID.
type form struct {
	name string
	make func(t testing.TB, src []byte) ([]byte, v1.Descriptor, v1.Hash)
	asIs bool // the tar stays as it is: estargz.Build adds landmarks, and of a name that a layer has twice it keeps the last entry
}

func tocForms() []form {
	return []form{
		{name: "eStargz", make: eStargz()},
		{name: "eStargz in small chunks", make: eStargz(estargz.WithChunkSize(10_000))},
		{name: "eStargz with several chunks in a member", make: eStargz(estargz.WithChunkSize(10_000), estargz.WithMinChunkSize(50_000))},
		{name: "eStargz with everything in a member", make: eStargz(estargz.WithMinChunkSize(1 << 30))},
		{name: "eStargz of the tar as it is", make: asItIs, asIs: true},
		{name: "zstd:chunked of the estargz package", make: zstdChunked()},
		{name: "zstd:chunked of the estargz package in small chunks", make: zstdChunked(estargz.WithChunkSize(4096))},
		{name: "zstd:chunked of containers/image", make: containersImage, asIs: true},
	}
}

func eStargz(opts ...estargz.Option) func(testing.TB, []byte) ([]byte, v1.Descriptor, v1.Hash) {
	return func(t testing.TB, src []byte) ([]byte, v1.Descriptor, v1.Hash) {
		b, toc, diffID := built(t, src, opts...)
		d := descriptor(b)
		d.Annotations = map[string]string{tocDigest: toc}
		return b, d, diffID
	}
}

// asItIs makes eStargz that leaves the tar as it is.
func asItIs(t testing.TB, src []byte) ([]byte, v1.Descriptor, v1.Hash) {
	t.Helper()
	var b bytes.Buffer
	w := estargz.NewWriterLevel(&b, gzip.BestSpeed)
	w.ChunkSize = 50_000
	if err := w.AppendTarLossLess(bytes.NewReader(src)); err != nil {
		t.Fatal(err)
	}
	toc, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	diffID, err := v1.NewHash(w.DiffID())
	if err != nil {
		t.Fatal(err)
	}
	d := descriptor(b.Bytes())
	d.Annotations = map[string]string{tocDigest: toc.String()}
	return b.Bytes(), d, diffID
}

func zstdChunked(opts ...estargz.Option) func(testing.TB, []byte) ([]byte, v1.Descriptor, v1.Hash) {
	return func(t testing.TB, src []byte) ([]byte, v1.Descriptor, v1.Hash) {
		ann := map[string]string{}
		c := smallWindows{zstdCompression{&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: ann}, new(zstdchunked.Decompressor)}}
		b, _, diffID := built(t, src, append(slices.Clone(opts), estargz.WithCompression(c))...)
		d := descriptor(b)
		d.Annotations = ann
		return b, d, diffID
	}
}

// smallWindows makes frames with windows of 64 KiB. The estargz package's own take megabytes of memory for every layer.
type smallWindows struct{ zstdCompression }

func (smallWindows) Writer(w io.Writer) (estargz.WriteFlushCloser, error) {
	return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(64<<10))
}

// containersImage makes zstd:chunked as containers/image does: the tar stays as it is, with no landmark. Headers and padding are in
// frames between those of the contents, which are cut where the bytes say so, and where a hole of at least holesFrom bytes begins or ends.
// Behind the frames come the TOC, the tar-split and the footer in skippable ones.
func containersImage(t testing.TB, src []byte) (b []byte, d v1.Descriptor, diffID v1.Hash) {
	t.Helper()
	const holesFrom = 1 << 12
	type obj = map[string]any
	var entries []obj
	var packed bytes.Buffer
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(64<<10))
	if err != nil {
		t.Fatal(err)
	}
	frame := func(p []byte) (start, end int64) {
		start = int64(len(b))
		if len(p) > 0 {
			packed.Reset()
			w.Reset(&packed)
			if _, err := w.Write(p); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			b = append(b, packed.Bytes()...)
		}
		return start, int64(len(b))
	}
	in := bytes.NewReader(src)
	tr := tar.NewReader(in)
	rest := 0 // what is in no frame yet
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		typ := map[byte]string{tar.TypeReg: "reg", tar.TypeDir: "dir", tar.TypeSymlink: "symlink", tar.TypeLink: "hardlink", tar.TypeChar: "char", tar.TypeBlock: "block", tar.TypeFifo: "fifo"}[h.Typeflag]
		xattrs := obj{}
		for k, v := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				xattrs[name] = []byte(v)
			}
		}
		e := obj{
			"type": typ, "name": h.Name, "linkName": h.Linkname, "mode": h.Mode, "size": h.Size, "uid": h.Uid, "gid": h.Gid,
			"modtime": h.ModTime, "accesstime": time.Time{}, "changetime": time.Time{}, "devMajor": h.Devmajor, "devMinor": h.Devminor, "xattrs": xattrs,
		}
		entries = append(entries, e)
		if typ != "reg" || h.Size == 0 {
			continue
		}
		at := len(src) - in.Len()
		frame(src[rest:at])
		rest = at + int(h.Size)
		body := src[at:rest]
		e["digest"] = digestOf(body).String()
		pieces := cuts(body, holesFrom)
		off := 0
		for i, p := range pieces {
			c := e
			if i > 0 {
				c = obj{"type": "chunk", "name": h.Name}
				entries = append(entries, c)
			}
			c["offset"], e["endOffset"] = frame(p)
			if len(pieces) > 1 {
				c["chunkSize"], c["chunkOffset"], c["chunkDigest"] = len(p), off, digestOf(p).String()
				if len(p) >= holesFrom && len(bytes.Trim(p, "\x00")) == 0 {
					c["chunkType"] = "zeros"
				}
			}
			off += len(p)
		}
	}
	frame(src[rest:])
	raw, err := json.Marshal(obj{"version": 1, "entries": entries, "tarSplitDigest": digestOf(nil).String()})
	if err != nil {
		t.Fatal(err)
	}
	toc, split := zst(t, raw), zst(t, []byte(`{"type":2,"payload":"","position":0}`))
	off := len(b) + skippableHeader
	b = append(b, skippable(toc)...)
	splitOff := len(b) + skippableHeader
	b = append(b, skippable(split)...)
	var footer []byte
	for _, v := range []int{off, len(toc), len(raw), 1, splitOff, len(split), 36} {
		footer = binary.LittleEndian.AppendUint64(footer, uint64(v))
	}
	b = append(b, skippable(append(footer, "GNUlInUx"...))...)
	d = descriptor(b)
	d.Annotations = map[string]string{
		imagePosition: fmt.Sprintf("%d:%d:%d:1", off, len(toc), len(raw)),
		imageChecksum: digestOf(toc).String(),
		"io.github.containers.zstd-chunked.tarsplit-position": fmt.Sprintf("%d:%d:36", splitOff, len(split)),
	}
	return b, d, digestOf(src)
}

// cuts cuts bytes at lines of some kind, and where holes begin and end.
func cuts(body []byte, hole int) (pieces [][]byte) {
	for len(body) > 0 {
		n := 0
		for n < len(body) && body[n] == 0 {
			n++
		}
		if n < hole {
			n = len(body)
			if i := bytes.Index(body, make([]byte, hole)); i >= 0 {
				n = i
			}
			if i := bytes.Index(body[:n], []byte("\n ab")); i > 0 {
				n = i
			}
		}
		pieces = append(pieces, body[:n])
		body = body[n:]
	}
	return pieces
}

// A layer that containers/image 5.22 made, in skopeo 1.9.3, of one that buildah had:
//
//	skopeo copy --dest-compress --dest-compress-format zstd:chunked dir:IMAGE oci:OUT
func TestContainersImageFixture(t *testing.T) {
	b, err := os.ReadFile("testdata/containers-image.tar.zst")
	if err != nil {
		t.Fatal(err)
	}
	d := descriptor(b)
	d.Annotations = map[string]string{
		estargzPosition: "1745:1017:6951:1",
		estargzChecksum: "sha256:a5a7b861eed45d455fee92b00b778fd06ee05063fdb8cf61c96b781f37308b61",
	}
	diffID, err := v1.NewHash("sha256:ed7f8fbf6a7b40271d5708264f4b7860e45deb6e008e62c9460853c9ffd5970c")
	if err != nil {
		t.Fatal(err)
	}
	sameAsTar(t, b, d, diffID)
}

// sameAsTar reads a layer by its TOC and by its tar, and compares what comes of it, rounding aside. It returns the former.
func sameAsTar(t *testing.T, b []byte, d v1.Descriptor, diffID v1.Hash) *Index {
	t.Helper()
	s, err := stream(t, b, diffID, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	ix, err := ReadTOC(t.Context(), blobtest.Bytes(b), d, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want := seconds(s.Entries)
	for i := range want {
		if i < len(ix.Entries) && ix.Entries[i].Mtime == s.Entries[i].Mtime {
			want[i].Mtime = s.Entries[i].Mtime
		}
	}
	sameEntries(t, ix.Entries, want)
	got, err := contents(t, ix, b)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range ix.Entries {
		if e.Size > 0 && got[e.Content] != s.content(s.Entries[i]) {
			t.Errorf("%q has another content", e.Name)
		}
	}
	checkTOC(t, ix, int64(len(b)))
	roundTrip(t, ix)
	if err := Verify(bytes.NewReader(b), d, diffID, ix, Limits{}); err != nil {
		t.Errorf("Verify: %v", err)
	}
	return ix
}

// TestForms reads layers of every form with a TOC, in both ways.
func TestForms(t *testing.T) {
	for _, f := range tocForms() {
		t.Run(f.name, func(t *testing.T) {
			b, d, diffID := f.make(t, makeTar(t, sample()...))
			ix := sameAsTar(t, b, d, diffID)
			inner := slices.ContainsFunc(ix.Chunks, func(c Chunk) bool { return c.Inner > 0 })
			if several := strings.HasSuffix(f.name, "a member"); several != inner {
				t.Errorf("chunks that lie behind another in a member: %v", inner)
			}
		})
	}
}

// TestFormsOfLittle reads layers without entries, with one, and with none but empty files.
func TestFormsOfLittle(t *testing.T) {
	for _, f := range tocForms() {
		for n, members := range [][]member{nil, {reg("a", "a")}, {reg("a", ""), reg("b", "")}} {
			b, d, diffID := f.make(t, makeTar(t, members...))
			if ix := sameAsTar(t, b, d, diffID); len(ix.Entries) != n {
				t.Errorf("%s: %d entries", f.name, len(ix.Entries))
			}
		}
	}
}

// TestLandmarks reads eStargz layers with the landmark of prioritized files, the one for none, and both names as plain files below.
func TestLandmarks(t *testing.T) {
	src := makeTar(t, reg("d/.prefetch.landmark", "mine"), reg("d/.no.prefetch.landmark", "mine"), reg("d/stargz.index.json", "{}"), reg("z", "z"))
	for _, opts := range [][]estargz.Option{nil, {estargz.WithPrioritizedFiles([]string{"z"})}} {
		b, d, diffID := eStargz(opts...)(t, src)
		ix := sameAsTar(t, b, d, diffID)
		var names []string
		for _, e := range ix.Entries {
			names = append(names, e.Name)
		}
		want := []string{"d/.prefetch.landmark", "d/.no.prefetch.landmark", "d/stargz.index.json", "z"}
		if opts != nil {
			want = append([]string{"z"}, want[:3]...)
		}
		if diff := cmp.Diff(want, names); diff != "" {
			t.Error(diff)
		}
	}
}

// TestMembers has chunks in members that estargz and containers/image don't write, but RFC 1952 and RFC 8878 allow.
func TestMembers(t *testing.T) {
	body := text(50_000, 1)
	a, b := []byte(body[:20_000]), []byte(body[20_000:])
	for _, tt := range []struct {
		name   string
		format Format
		member []byte
	}{
		{"gzip with every field of the header", Gzip, gzHeader(t, []byte(body), true)},
		{"gzip of two members", Gzip, gz(t, a, b)},
		{"gzip with empty members", Gzip, gz(t, nil, a, nil, nil, b, nil)},
		{"gzip, stored", Gzip, gzLevel(t, []byte(body), gzip.NoCompression)},
		{"zstd without content size", Zstd, zstFrame(t, []byte(body))},
		{"zstd of two frames", Zstd, slices.Concat(zst(t, a), zstFrame(t, b))},
		{"zstd with empty and skippable frames", Zstd, slices.Concat(skippable(nil), zst(t, nil), zst(t, a), skippable(make([]byte, 70)), zst(t, b))},
		{"zstd with a window of 64 MiB", Zstd, zstFrame(t, []byte(body), zstd.WithWindowSize(64<<20))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			data := append([]byte("#"), tt.member...)
			toc := fmt.Sprintf(`{"entries":[{"name":"a","type":"reg","size":50000,"offset":1,"chunkSize":30000,"chunkDigest":%q},`+
				`{"type":"chunk","offset":1,"innerOffset":30000,"chunkOffset":30000,"chunkDigest":%q}]}`, digestOf([]byte(body[:30_000])), digestOf([]byte(body[30_000:])))
			ix, err := parseTOC(strings.NewReader(toc), 0, int64(len(data)), tt.format, Limits{}.withDefaults())
			if err != nil {
				t.Fatal(err)
			}
			got, err := contents(t, ix, data)
			if err != nil || got[0] != body {
				t.Errorf("%d bytes, %v", len(got[0]), err)
			}
		})
	}
}
