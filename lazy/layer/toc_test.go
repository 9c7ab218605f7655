package layer

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/blob/blobtest"
	"github.com/pexfs/pex/lazy/tree"
)

func tocOf(t testing.TB, b []byte, digest string) (*Index, error) {
	t.Helper()
	d := descriptor(b)
	d.Annotations = map[string]string{tocDigest: digest}
	return ReadTOC(t.Context(), blobtest.Bytes(b), d, Limits{})
}

// zstdCompression is what estargz.Build wants for zstd:chunked.
type zstdCompression struct {
	*zstdchunked.Compressor
	*zstdchunked.Decompressor
}

// TestReadTOCBuilt compares layers that the estargz package makes, read by TOC and chunks, with the same blobs streamed.
func TestReadTOCBuilt(t *testing.T) {
	src := makeTar(t, sample()...)
	for _, tt := range []struct {
		name   string
		opts   []estargz.Option
		zstd   bool
		chunks int // at least
	}{
		{name: "defaults"},
		{name: "small chunks", opts: []estargz.Option{estargz.WithChunkSize(10_000)}, chunks: 90},
		{name: "several chunks in a member", opts: []estargz.Option{estargz.WithChunkSize(10_000), estargz.WithMinChunkSize(50_000)}, chunks: 90},
		{name: "everything in a member", opts: []estargz.Option{estargz.WithMinChunkSize(1 << 30)}},
		{name: "prioritized files", opts: []estargz.Option{estargz.WithPrioritizedFiles([]string{"last", "big"})}},
		{name: "another level", opts: []estargz.Option{estargz.WithCompressionLevel(gzip.BestCompression)}},
		{name: "zstd:chunked", zstd: true},
		{name: "zstd:chunked, small chunks", zstd: true, opts: []estargz.Option{estargz.WithChunkSize(4096)}, chunks: 200},
		{name: "zstd:chunked, several in a frame", zstd: true, opts: []estargz.Option{estargz.WithChunkSize(4096), estargz.WithMinChunkSize(20_000)}, chunks: 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ann := map[string]string{}
			format := Gzip
			if tt.zstd {
				format = Zstd
				tt.opts = append(tt.opts, estargz.WithCompression(zstdCompression{&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: ann}, new(zstdchunked.Decompressor)}))
			}
			b, toc, diffID := built(t, src, tt.opts...)
			if !tt.zstd {
				ann[tocDigest] = toc
			}
			want, err := stream(t, b, diffID, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			d := descriptor(b)
			d.Annotations = ann
			var requests blob.Counter
			ix, err := ReadTOC(t.Context(), blob.Count(blobtest.Bytes(b), &requests), d, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if ix.Source != FromTOC || ix.Format != format || len(ix.Chunks) < tt.chunks {
				t.Errorf("source %d, format %d, %d chunks", ix.Source, ix.Format, len(ix.Chunks))
			}
			if requests.Requests() != 1 {
				t.Errorf("%d requests", requests.Requests())
			}
			sameEntries(t, ix.Entries, seconds(want.Entries))
			got, err := contents(t, ix, b)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range ix.Entries {
				if e.Size > 0 && got[e.Content] != want.content(want.Entries[indexOf(want.Entries, e.Name)]) {
					t.Errorf("%s has another content", e.Name)
				}
			}
			checkTOC(t, ix, int64(len(b)))
			roundTrip(t, ix)
		})
	}
}

func indexOf(entries []tree.Entry, name string) int {
	for i, e := range entries {
		if e.Name == name {
			return i
		}
	}
	return -1
}

// checkTOC sees to it that a TOC's index holds together.
func checkTOC(t testing.TB, ix *Index, size int64) {
	t.Helper()
	first := uint32(0)
	for i, c := range ix.Contents {
		if c.FirstChunk != first || c.Chunks == 0 {
			t.Fatalf("content %d: chunks %d+%d, want from %d", i, c.FirstChunk, c.Chunks, first)
		}
		first += c.Chunks
		off := int64(0)
		key := sha256.New()
		io.WriteString(key, "pex chunks 1")
		for _, ch := range ix.Chunks[c.FirstChunk:first] {
			if ch.Off != off || ch.Size <= 0 || ch.Size > maxChunk || ch.Start < 0 || ch.End <= ch.Start || ch.End > size || ch.Inner < 0 {
				t.Fatalf("content %d: chunk %+v, want it at %d, in %d", i, ch, off, size)
			}
			off += ch.Size
			key.Write([]byte{byte(ch.Size), byte(ch.Size >> 8), byte(ch.Size >> 16), byte(ch.Size >> 24), 0, 0, 0, 0})
			key.Write(ch.Digest[:])
		}
		if off != c.Size || Key(key.Sum(nil)) != c.Key {
			t.Fatalf("content %d: %d bytes in chunks, %d in all, key %x", i, off, c.Size, c.Key)
		}
	}
	chunks, _ := inOrder(ix)
	for i := 1; i < len(chunks); i++ {
		a, b := chunks[i-1], chunks[i]
		if a.Start != b.Start && a.End > b.Start || a.Start == b.Start && (a.End != b.End || a.Inner+a.Size > b.Inner && !sameBytes(&a, &b)) {
			t.Fatalf("chunks overlap: %+v, %+v", a, b)
		}
	}
	for _, e := range ix.Entries {
		if e.Size > 0 && ix.Contents[e.Content].Size != e.Size {
			t.Fatalf("entry %+v", e)
		}
	}
}

func TestReadTOCRequests(t *testing.T) {
	var many []member
	for i := range 3500 {
		many = append(many, reg(fmt.Sprint("d/", i), text(60, uint64(i))))
	}
	for _, tt := range []struct {
		name     string
		members  []member
		requests int64
	}{
		{"empty", nil, 1},
		{"small", sample(), 1},
		{"one big file", []member{reg("big", string(blobtest.Random(1<<20)))}, 1},
		{"TOC beyond the tail", many, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, toc, _ := built(t, makeTar(t, tt.members...))
			d := descriptor(b)
			d.Annotations = map[string]string{tocDigest: toc}
			var requests blob.Counter
			ix, err := ReadTOC(t.Context(), blob.Count(blobtest.Bytes(b), &requests), d, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if requests.Requests() != tt.requests || len(ix.Entries) != len(tt.members) {
				t.Errorf("%d requests of %d bytes, %d entries", requests.Requests(), requests.Bytes(), len(ix.Entries))
			}
		})
	}
}

// chunked is a zstd:chunked layer with the TOC of containers/image: holes have entries of their own, a file's endOffset is that of its
// last chunk, and a file of one chunk has only its own digest.
func chunked(t testing.TB) (b []byte, ann map[string]string, bodies map[string]string) {
	t.Helper()
	b = zst(t, make([]byte, 512)) // a header
	frame := func(data string) (start, end int64) {
		start = int64(len(b))
		b = append(b, zst(t, []byte(data))...)
		return start, int64(len(b))
	}
	sum := func(s string) string { return digestOf([]byte(s)).String() }
	bodies = map[string]string{"one": text(5000, 1), "three": text(3000, 2) + strings.Repeat("\x00", 100_000) + "end", "hole": "a" + strings.Repeat("\x00", maxChunk+holePiece+5)}
	type obj = map[string]any
	entries := []obj{{"type": "dir", "name": "d", "mode": 0o755, "modtime": "2001-09-09T01:46:40.5Z", "xattrs": obj{"user.x": base64.StdEncoding.EncodeToString([]byte{0, 255})}}}
	s, e := frame(bodies["one"])
	entries = append(entries, obj{"type": "reg", "name": "one", "size": 5000, "mode": 0o644, "digest": sum(bodies["one"]), "offset": s, "endOffset": e})
	for _, name := range []string{"three", "hole"} {
		body, file, last := bodies[name], obj(nil), int64(0)
		cuts := []int{0, 3000, 103_000, len(body)}
		if name == "hole" {
			cuts = []int{0, 1, len(body)}
		}
		for i := range len(cuts) - 1 {
			part := body[cuts[i]:cuts[i+1]]
			s, last = frame(part)
			o := obj{"type": "chunk", "name": name, "offset": s, "chunkSize": len(part), "chunkOffset": cuts[i], "chunkDigest": sum(part)}
			if i == 1 {
				o["chunkType"] = "zeros"
			}
			if i == 0 {
				o["type"], o["size"], o["digest"] = "reg", len(body), sum(body)
				file = o
			}
			entries = append(entries, o)
			frame(strings.Repeat("\x00", 512)) // padding and a header lie between
		}
		file["endOffset"] = last
	}
	raw, err := json.Marshal(obj{"version": 1, "entries": entries, "tarSplitDigest": sum("")})
	if err != nil {
		t.Fatal(err)
	}
	packed := zst(t, raw)
	off := len(b) + skippableHeader
	b = append(b, skippable(packed)...)
	b = append(b, skippable(make([]byte, 64))...)
	return b, map[string]string{
		imagePosition: fmt.Sprintf("%d:%d:%d:1", off, len(packed), len(raw)),
		imageChecksum: sum(string(packed)),
	}, bodies
}

func TestReadTOCContainersImage(t *testing.T) {
	b, ann, bodies := chunked(t)
	d := descriptor(b)
	d.Annotations = ann
	ix, err := ReadTOC(t.Context(), blobtest.Bytes(b), d, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	sameEntries(t, ix.Entries, []tree.Entry{
		{Name: "d", Type: tree.Dir, Mode: 0o755, Mtime: tree.Time{Sec: 1e9, Nsec: 500_000_000}, Xattrs: []tree.Xattr{{Name: "user.x", Value: []byte{0, 255}}}},
		{Name: "one", Type: tree.Regular, Mode: 0o644, Size: 5000},
		{Name: "three", Type: tree.Regular, Size: 103_003},
		{Name: "hole", Type: tree.Regular, Size: int64(len(bodies["hole"]))},
	})
	got, err := contents(t, ix, b)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ix.Entries[1:] {
		if got[e.Content] != bodies[e.Name] {
			t.Errorf("%s has another content", e.Name)
		}
	}
	checkTOC(t, ix, int64(len(b)))
	roundTrip(t, ix)
}

func TestReadTOCFetchFails(t *testing.T) {
	d := descriptor(nil)
	d.Annotations = map[string]string{tocDigest: digestOf(nil).String()}
	_, err := ReadTOC(t.Context(), &noRange{1000, errBoom}, d, Limits{})
	if !errors.Is(err, errBoom) || errors.Is(err, ErrNoTOC) {
		t.Errorf("error %v", err)
	}
}

// seal makes an eStargz blob of some data and a TOC, with the footer of eStargz or of stargz.
func seal(t testing.TB, data []byte, toc string, legacy bool) []byte {
	t.Helper()
	b := append(bytes.Clone(data), gz(t, makeTar(t, reg(tocName, toc)))...)
	extra := fmt.Sprintf("%016xSTARGZ", len(data))
	if !legacy {
		extra = "SG\x16\x00" + extra
	}
	return append(b, estargz.CreateGzipFooter([]byte(extra))...)
}

// TestReadTOCLegacy reads a layer with the footer of stargz, by its TOC where the manifest vouches for that, and as a tar.
func TestReadTOCLegacy(t *testing.T) {
	b, d, diffID := eStargz(estargz.WithChunkSize(10_000))(t, makeTar(t, sample()...))
	off, size, ok := parseFooter(b)
	if !ok || size != footerSize {
		t.Fatalf("footer of %d bytes", size)
	}
	b = append(b[:len(b)-footerSize], estargz.CreateGzipFooter(fmt.Appendf(nil, "%016xSTARGZ", off))...)
	if _, size, ok = parseFooter(b); !ok || size != legacyFooterSize {
		t.Fatalf("footer of %d bytes", size)
	}
	legacy := descriptor(b)
	legacy.Annotations = d.Annotations
	if ix := sameAsTar(t, b, legacy, diffID); len(ix.Entries) != len(sample()) {
		t.Errorf("%d entries", len(ix.Entries))
	}
	legacy.Annotations = nil
	if _, err := ReadTOC(t.Context(), blobtest.Bytes(b), legacy, Limits{}); !errors.Is(err, ErrNoTOC) {
		t.Errorf("error %v", err)
	}
}

// TestReadTOCFlippedBits flips every bit of a small eStargz layer: what is read is right, or there is an error.
func TestReadTOCFlippedBits(t *testing.T) {
	b, toc, _ := built(t, makeTar(t, reg("a", text(700, 1)), reg("b", "b")), estargz.WithChunkSize(300))
	for i := range len(b) * 8 {
		bad := bytes.Clone(b)
		bad[i/8] ^= 1 << (i % 8)
		ix, err := tocOf(t, bad, toc)
		if err != nil {
			continue
		}
		got, err := contents(t, ix, bad)
		if err == nil && (got[0] != text(700, 1) || got[1] != "b") {
			t.Errorf("bit %d flipped gave another content", i)
		}
	}
}

// FuzzReadTOC feeds blobs whose TOCs, if any, are vouched for.
func FuzzReadTOC(f *testing.F) {
	b, _, _ := built(f, makeTar(f, reg("a", text(700, 1)), reg("b", "b")), estargz.WithChunkSize(300))
	f.Add(b)
	toc := `{"entries":[{"name":"f","type":"reg","size":5,"digest":"x"}]}`
	f.Add(seal(f, gz(f, []byte("hello")), toc, false))
	f.Add(seal(f, gz(f, []byte("hello")), toc, true))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := tocOf(t, b, digestOf(nil).String())
		if _, is, ok := strings.Cut(fmt.Sprint(err), " is sha256:"); ok {
			if ix, err := tocOf(t, b, "sha256:"+is[:64]); err == nil {
				checkTOC(t, ix, int64(len(b)))
				roundTrip(t, ix)
				_, _ = contents(t, ix, b) // must only not panic or hang
			}
		}
	})
}

func BenchmarkReadTOC(b *testing.B) {
	var members []member
	for i := range 20_000 {
		m := reg(fmt.Sprintf("usr/lib/python3/dist-packages/some/package/module_%d.py", i), text(50, uint64(i)))
		m.ModTime = time.Unix(1e9+int64(i), 0)
		members = append(members, m)
	}
	src := makeTar(b, members...)
	for _, z := range []bool{false, true} {
		d := descriptor(nil)
		d.Annotations = map[string]string{}
		var opts []estargz.Option
		name := "eStargz"
		if z {
			name = "zstd:chunked"
			opts = append(opts, estargz.WithCompression(zstdCompression{&zstdchunked.Compressor{CompressionLevel: zstd.SpeedFastest, Metadata: d.Annotations}, nil}))
		}
		blob, toc, _ := built(b, src, opts...)
		if !z {
			d.Annotations[tocDigest] = toc
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ReadTOC(b.Context(), blobtest.Bytes(blob), d, Limits{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
