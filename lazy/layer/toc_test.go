package layer

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/klauspost/compress/zstd"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/blob/blobtest"
	"github.com/pexfs/pex/lazy/tree"
)

func readTOC(t testing.TB, b []byte, digest string) (*Index, error) {
	t.Helper()
	d := descriptor(b)
	d.Annotations = map[string]string{tocDigest: digest}
	return ReadTOC(t.Context(), blobtest.Bytes(b), d)
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
		{name: "another level", opts: []estargz.Option{estargz.WithCompressionLevel(1)}},
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
			ix, err := ReadTOC(t.Context(), blob.Count(blobtest.Bytes(b), &requests), d)
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
	for i := range 5000 {
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
			ix, err := ReadTOC(t.Context(), blob.Count(blobtest.Bytes(b), &requests), d)
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
	ix, err := ReadTOC(t.Context(), blobtest.Bytes(b), d)
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

func TestReadTOCAnnotations(t *testing.T) {
	zb, zann, _ := chunked(t)
	gb, digest, _ := built(t, makeTar(t, reg("a", "b")))
	with := func(ann map[string]string, k, v string) map[string]string {
		ann = maps.Clone(ann)
		ann[k] = v
		return ann
	}
	var off, clen, ulen int64
	fmt.Sscanf(zann[imagePosition], "%d:%d:%d:1", &off, &clen, &ulen)
	position := func(off, clen, ulen int64, typ int) map[string]string {
		return with(zann, imagePosition, fmt.Sprintf("%d:%d:%d:%d", off, clen, ulen, typ))
	}
	gann := map[string]string{tocDigest: digest}
	sum := digestOf(nil).String()
	for _, tt := range []struct {
		name string
		blob []byte
		ann  map[string]string
		is   error
		not  error
		want string
	}{
		{name: "none", blob: gb, is: ErrNoTOC, want: "the manifest vouches for none"},
		{name: "position without checksum", blob: zb, ann: map[string]string{imagePosition: zann[imagePosition]}, is: ErrNoTOC},
		{name: "names of the estargz package", blob: zb, ann: map[string]string{estargzPosition: zann[imagePosition], estargzChecksum: zann[imageChecksum]}},
		{name: "wrong digest", blob: gb, ann: with(gann, tocDigest, sum), is: blob.ErrDigestMismatch, not: ErrNoTOC, want: sum},
		{name: "wrong checksum", blob: zb, ann: with(zann, imageChecksum, sum), is: blob.ErrDigestMismatch, not: ErrNoTOC, want: sum},
		{name: "another algorithm", blob: gb, ann: with(gann, tocDigest, "sha512:"+strings.Repeat("00", 64)), is: ErrNoTOC, want: "is not a SHA-256"},
		{name: "no hexadecimal", blob: gb, ann: with(gann, tocDigest, "sha256:"+strings.Repeat("xx", 32)), is: ErrNoTOC},
		{name: "no footer", blob: gb[:len(gb)-1], ann: gann, is: ErrNoTOC, want: "no eStargz footer"},
		{name: "tiny blob", blob: []byte("x"), ann: gann, is: ErrNoTOC},
		{name: "offset elsewhere", blob: zb, ann: position(off-1, clen, ulen, 1), is: blob.ErrDigestMismatch},
		{name: "offset in the header", blob: zb, ann: position(1, clen, ulen, 1), not: ErrNoTOC, want: "at 1+"},
		{name: "beyond the end", blob: zb, ann: position(off, int64(len(zb)), ulen, 1), not: ErrNoTOC, want: "its annotation says"},
		{name: "no bytes", blob: zb, ann: position(off, 0, ulen, 1), not: ErrNoTOC},
		{name: "inflates to more", blob: zb, ann: position(off, clen, ulen-1, 1), not: ErrNoTOC, want: "more than"},
		{name: "inflates to less", blob: zb, ann: position(off, clen, ulen+1, 1), is: io.ErrUnexpectedEOF},
		{name: "absurd length", blob: zb, ann: position(off, clen, 1<<40, 1), is: ErrNoTOC},
		{name: "another type", blob: zb, ann: position(off, clen, ulen, 2), is: ErrNoTOC},
		{name: "not a position", blob: zb, ann: with(zann, imagePosition, "1:-2:3:1"), is: ErrNoTOC},
		{name: "zeros beyond 64 bits", blob: zb, ann: with(zann, imagePosition, "1:2:99999999999999999999:1"), is: ErrNoTOC},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := descriptor(tt.blob)
			d.Annotations = tt.ann
			_, err := ReadTOC(t.Context(), blobtest.Bytes(tt.blob), d)
			if tt.is == nil && tt.not == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) || tt.not != nil && errors.Is(err, tt.not) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestReadTOCFetchFails(t *testing.T) {
	d := descriptor(nil)
	d.Annotations = map[string]string{tocDigest: digestOf(nil).String()}
	_, err := ReadTOC(t.Context(), &noRange{1000, errBoom}, d)
	if !errors.Is(err, errBoom) || errors.Is(err, ErrNoTOC) {
		t.Errorf("error %v", err)
	}
}

// seal makes an eStargz blob of some data and a TOC, with the footer of eStargz or of stargz.
func seal(t testing.TB, data []byte, toc string, legacy bool) []byte {
	t.Helper()
	b := append(bytes.Clone(data), gz(t, makeTar(t, member{tar.Header{Typeflag: tar.TypeReg, Name: tocName, Size: int64(len(toc))}, toc}))...)
	extra := fmt.Sprintf("%016xSTARGZ", len(data))
	if !legacy {
		extra = "SG\x16\x00" + extra
	}
	return append(b, estargz.CreateGzipFooter([]byte(extra))...)
}

func TestReadTOCLegacyFooter(t *testing.T) {
	data := gz(t, []byte("hello"))
	toc := fmt.Sprintf(`{"version":1,"entries":[{"name":"f","type":"reg","size":5,"digest":%q}]}`, digestOf([]byte("hello")))
	for _, legacy := range []bool{false, true} {
		b := seal(t, data, toc, legacy)
		ix, err := readTOC(t, b, digestOf([]byte(toc)).String())
		if err != nil {
			t.Fatal(err)
		}
		got, err := contents(t, ix, b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]string{"hello"}, got); d != "" {
			t.Error(d)
		}
	}
}

// TestTOCs reads TOCs written by hand for a blob whose data has 1,000 bytes.
func TestTOCs(t *testing.T) {
	sum := `"chunkDigest":"` + digestOf(nil).String() + `"`
	reg := func(name string, more string) string {
		return fmt.Sprintf(`{"name":%q,"type":"reg",%s}`, name, more)
	}
	big := strings.Repeat("A", 4*(maxXattrs/3+10))
	for _, tt := range []struct {
		name    string
		entries string // joined to a TOC, if it isn't one
		noTOC   bool
		want    string // in the error; "" if there is none
	}{
		{name: "no entries", entries: ``},
		{name: "null", entries: `{"version":1,"entries":null}`},
		{name: "unknown keys", entries: `{"x":[1,{"y":[true,false,null,-1.5e+3]}],"entries":[{"type":"fifo","name":"p","z":{"a":"b"}}]}`},
		{name: "a file", entries: reg("f", `"size":10,"offset":5,`+sum)},
		{name: "a file with its own digest", entries: reg("f", `"size":10,"offset":5,"digest":"`+digestOf(nil).String()+`"`)},
		{name: "twice the same chunk", entries: reg("f", `"size":10,"offset":5,`+sum) + "," + reg("g", `"size":10,"offset":5,`+sum)},
		{name: "landmarks", entries: reg(".prefetch.landmark", `"size":1,"offset":5`) + "," + reg("./.no.prefetch.landmark", `"size":1`) + `,{"type":"chunk","name":"./.no.prefetch.landmark"}`},

		{name: "not JSON", entries: `{"version":1,"entries":[`, noTOC: true, want: "JSON at byte"},
		{name: "not an object", entries: `[`, noTOC: true, want: "JSON"},
		{name: "bytes behind", entries: `{} {}`, noTOC: true, want: "behind the end"},
		{name: "version", entries: `{"version":2}`, noTOC: true, want: "version 2"},
		{name: "nested too deep", entries: `{"x":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}`, noTOC: true, want: "too deep"},
		{name: "name not UTF-8", entries: `{"name":"a\ufffd","type":"dir"}`, noTOC: true, want: "UTF-8"},
		{name: "name with raw bytes", entries: "{\"name\":\"a\xff\",\"type\":\"dir\"}", noTOC: true, want: "UTF-8"},
		{name: "half a surrogate", entries: `{"name":"a\ud800","type":"dir"}`, noTOC: true, want: "UTF-8"},
		{name: "link not UTF-8", entries: `{"name":"a","linkName":"�","type":"symlink"}`, noTOC: true, want: "UTF-8"},
		{name: "attribute not UTF-8", entries: `{"name":"a","type":"dir","xattrs":{"user.\ufffd":""}}`, noTOC: true, want: "UTF-8"},
		{name: "unknown type", entries: `{"name":"a","type":"door"}`, noTOC: true, want: `type "door"`},
		{name: "no type", entries: `null`, noTOC: true, want: "type"},
		{name: "time", entries: `{"name":"a","type":"dir","modtime":"now"}`, noTOC: true, want: "time"},
		{name: "base64", entries: `{"name":"a","type":"dir","xattrs":{"user.a":"%"}}`, noTOC: true, want: "base64"},
		{name: "no digest", entries: reg("f", `"size":10,"offset":5`), noTOC: true, want: "vouches"},
		{name: "a file's digest for several chunks", entries: reg("f", `"size":10,"chunkSize":5,"digest":"x"`), noTOC: true, want: "vouches"},
		{name: "another algorithm", entries: reg("f", `"size":10,"chunkDigest":"md5:x"`), noTOC: true, want: "not a SHA-256"},
		{name: "a huge chunk", entries: reg("f", fmt.Sprintf(`"size":%d,%s`, maxChunk+1, sum)), noTOC: true, want: "67108865 bytes"},
		{name: "a huge hole", entries: reg("f", fmt.Sprintf(`"size":%d,"chunkType":"zeros",%s`, maxMember+1, sum)), noTOC: true, want: "bytes"},
		{name: "a strange chunk", entries: reg("f", `"size":10,"chunkType":"ones",`+sum), noTOC: true, want: "ones"},
		{name: "far within a member", entries: reg("f", fmt.Sprintf(`"size":10,"innerOffset":%d,%s`, maxMember, sum)), noTOC: true, want: "within"},

		{name: "beyond the data", entries: reg("f", `"size":10,"offset":1000,`+sum), want: `entry 0, "f": a chunk at offset 1000: the blob's data ends at 1000`},
		{name: "negative offset", entries: reg("f", `"size":10,"offset":-1,`+sum), want: "offset -1"},
		{name: "negative place in a member", entries: reg("f", `"size":10,"innerOffset":-1,`+sum), want: "-1 within"},
		{name: "negative size", entries: reg("f", `"size":-10`), want: "size -10"},
		{name: "negative chunk", entries: reg("f", `"size":10,"chunkSize":-1,`+sum), want: "a chunk of -1 bytes"},
		{name: "chunk beyond the file", entries: reg("f", `"size":10,"chunkSize":11,`+sum), want: "a chunk of 11 bytes at 0 of 10"},
		{name: "chunks missing", entries: reg("f", `"size":10,"chunkSize":5,`+sum), want: `the chunks of "f" have 5 bytes, the file has 10`},
		{name: "chunks missing before another file", entries: reg("f", `"size":10,"chunkSize":5,`+sum) + "," + reg("g", `"size":0`), want: "have 5 bytes"},
		{name: "a gap", entries: reg("f", `"size":10,"chunkSize":5,`+sum) + `,{"type":"chunk","chunkOffset":6,` + sum + `}`, want: "at 6 where 5 is next"},
		{name: "a chunk too many", entries: reg("f", `"size":10,`+sum) + `,{"type":"chunk","chunkOffset":10,` + sum + `}`, want: "a chunk of 0 bytes at 10 of 10"},
		{name: "a chunk of nothing", entries: `{"type":"chunk","name":"f"}`, want: "belongs to no file"},
		{name: "a chunk of a directory", entries: `{"type":"dir","name":"f"},{"type":"chunk","name":"f"}`, want: "belongs to no file"},
		{name: "a chunk of another file", entries: reg("f", `"size":10,"chunkSize":5,`+sum) + `,{"type":"chunk","name":"g","chunkOffset":5,` + sum + `}`, want: `behind "f"`},
		{name: "overlap within a member", entries: reg("f", `"size":10,"offset":5,`+sum) + "," + reg("g", `"size":10,"offset":5,"innerOffset":9,`+sum), want: "overlap at offset 5, 9 within"},
		{name: "other digests of the same bytes", entries: reg("f", `"size":10,"offset":5,`+sum) + "," + reg("g", `"size":10,"offset":5,"chunkDigest":"`+digestOf([]byte{1}).String()+`"`), want: "overlap"},
		{name: "end before start", entries: reg("f", `"size":10,"offset":5,"endOffset":5,`+sum), want: "ends at 5"},
		{name: "end beyond the data", entries: reg("f", `"size":10,"offset":5,"endOffset":1001,`+sum), want: "reaches to 1001"},
		{name: "end in another's member", entries: reg("f", `"size":10,"offset":5,"endOffset":60,`+sum) + "," + reg("g", `"size":10,"offset":50,`+sum), want: "reaches to 60"},
		{name: "uid", entries: `{"name":"a","type":"dir","uid":-1}`, want: "uid -1"},
		{name: "gid", entries: `{"name":"a","type":"dir","gid":4294967296}`, want: "gid 4294967296"},
		{name: "device", entries: `{"name":"a","type":"char","devMajor":-5}`, want: "major -5"},
		{name: "attributes", entries: `{"name":"a","type":"dir","xattrs":{"user.a":"` + big + `"}}`, want: "attributes of"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			toc := tt.entries
			if !strings.HasPrefix(toc, `{"version"`) && !strings.HasPrefix(toc, `{"x"`) && !strings.HasPrefix(toc, "[") && !strings.HasPrefix(toc, "{}") {
				toc = `{"version":1,"entries":[` + toc + `]}`
			}
			ix, err := parseTOC([]byte(toc), 1000, Gzip)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				checkTOC(t, ix, 1000)
				return
			}
			if err == nil || errors.Is(err, ErrNoTOC) != tt.noTOC || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestTOCFieldsOfEntries(t *testing.T) {
	ix, err := parseTOC([]byte(`{"entries":[
		{"name":"su","type":"reg","mode":35309,"modtime":"1969-12-31T23:59:58Z","uid":1,"gid":4294967295,"linkName":"left over","devMajor":7},
		{"name":"l\u00e4\ud83d\ude00","type":"symlink","linkName":"\"\\\/\b\f\n\r\t"},
		{"name":"h","type":"hardlink","linkName":"su","modtime":"0001-01-01T00:00:00Z"},
		{"name":"b","type":"block","devMajor":259,"devMinor":4294967295,"size":5}
	]}`), 0, Gzip)
	if err != nil {
		t.Fatal(err)
	}
	want := []tree.Entry{
		{Name: "su", Type: tree.Regular, Mode: 0o4755, Mtime: tree.Time{Sec: -2}, UID: 1, GID: 1<<32 - 1},
		{Name: "lä😀", Type: tree.Symlink, Linkname: "\"\\/\b\f\n\r\t"},
		{Name: "h", Type: tree.HardLink, Linkname: "su"},
		{Name: "b", Type: tree.Block, Major: 259, Minor: 1<<32 - 1},
	}
	if d := cmp.Diff(want, ix.Entries, cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
}

// TestReadTOCFlippedBits flips every bit of a small eStargz layer: what is read is right, or there is an error.
func TestReadTOCFlippedBits(t *testing.T) {
	b, toc, _ := built(t, makeTar(t, reg("a", text(700, 1)), reg("b", "b")), estargz.WithChunkSize(300))
	for i := range len(b) * 8 {
		bad := bytes.Clone(b)
		bad[i/8] ^= 1 << (i % 8)
		ix, err := readTOC(t, bad, toc)
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
		_, err := readTOC(t, b, digestOf(nil).String())
		if _, is, ok := strings.Cut(fmt.Sprint(err), " is sha256:"); ok {
			if ix, err := readTOC(t, b, "sha256:"+is[:64]); err == nil {
				checkTOC(t, ix, int64(len(b)))
				roundTrip(t, ix)
				_, _ = contents(t, ix, b) // must only not panic or hang
			}
		}
	})
}

// FuzzTOC feeds the JSON.
func FuzzTOC(f *testing.F) {
	sum := digestOf([]byte("a")).String()
	f.Add([]byte(fmt.Sprintf(`{"version":1,"entries":[{"name":"f","type":"reg","size":10,"offset":5,"chunkSize":4,"chunkDigest":%q},{"type":"chunk","offset":20,"chunkOffset":4,"chunkDigest":%q},{"name":"d/","type":"dir","mode":493,"modtime":"2001-09-09T01:46:40Z","xattrs":{"user.a":"AA=="}}]}`, sum, sum)))
	f.Add([]byte(fmt.Sprintf(`{"entries":[{"name":"z","type":"reg","size":99999999,"offset":5,"endOffset":9,"chunkType":"zeros","chunkDigest":%q},{"name":"g","type":"reg","size":4,"offset":9,"innerOffset":10,"digest":%q}]}`, sum, sum)))
	f.Fuzz(func(t *testing.T, b []byte) {
		ix, err := parseTOC(b, 1000, Gzip)
		if err != nil {
			return
		}
		checkTOC(t, ix, 1000)
		roundTrip(t, ix)
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
				if _, err := ReadTOC(b.Context(), blobtest.Bytes(blob), d); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
