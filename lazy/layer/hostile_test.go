package layer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/blob/blobtest"
)

// The tables of this file are the list of what hostile layers meet: a name, how the layer is made, and the error that it gives, where
// sha256:… stands for a digest. Callers put the layer's digest before it.

// hostile is a layer that lies.
type hostile struct {
	b      []byte
	d      v1.Descriptor
	diffID v1.Hash
	lim    Limits
}

var digests = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// refused sees to it that reading a layer gives the error wanted, that this wraps what its text says, and that little memory was taken.
func refused(t *testing.T, want string, read func() (*Index, error)) {
	t.Helper()
	const most = 24 << 20 // bytes, most of them buffers that every reading takes
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	ix, err := read()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > most {
		t.Errorf("it took %d bytes of memory", n)
	}
	if err == nil || ix != nil {
		t.Fatalf("index %v, error %v", ix, err)
	}
	if got := digests.ReplaceAllString(err.Error(), "sha256:…"); got != want {
		t.Errorf("error\n%s\nwant\n%s", got, want)
	}
	for _, is := range []error{ErrNoTOC, ErrLimit, ErrTOCDiffers, blob.ErrDigestMismatch} {
		if errors.Is(err, is) != strings.Contains(want, is.Error()) {
			t.Errorf("whether it wraps %q: %v", is, errors.Is(err, is))
		}
	}
}

// sealed is an eStargz layer of 1,000 bytes of data and a TOC, for which the manifest vouches.
func sealed(t testing.TB, toc string) hostile {
	t.Helper()
	b := seal(t, make([]byte, 1000), toc, false)
	d := descriptor(b)
	d.Annotations = map[string]string{tocDigest: digestOf([]byte(toc)).String()}
	return hostile{b: b, d: d}
}

// TestHostileTOC has TOCs that are what the manifest vouches for. Where none is usable the layer is streamed.
func TestHostileTOC(t *testing.T) {
	sum := `"chunkDigest":"` + digestOf(nil).String() + `"`
	other := `"chunkDigest":"` + digestOf([]byte{1}).String() + `"`
	reg := func(name, more string) string { return fmt.Sprintf(`{"name":%q,"type":"reg",%s}`, name, more) }
	chunk := func(more string) string { return `,{"type":"chunk",` + more + `}` }
	many := func(n int, s string) string { return strings.Repeat(s+",", n-1) + s }
	attributes := func(n, size int) string {
		s := make([]string, n)
		for i := range s {
			s[i] = fmt.Sprintf(`"user.%d":"%s"`, i, strings.Repeat("AAAA", size/3))
		}
		return `{"name":"a","type":"dir","xattrs":{` + strings.Join(s, ",") + `}}`
	}
	for _, tt := range []struct {
		name string
		toc  string // its entries, or all of it
		lim  Limits
		want string
	}{
		{"cut", `{"version":1,"entries":[`, Limits{}, `no usable table of contents: JSON at byte 24: no '{'`},
		{"a string without end", `{"entries":[{"name":"a`, Limits{}, `no usable table of contents: JSON at byte 22: a string without end`},
		{"a list", `[`, Limits{}, `no usable table of contents: JSON at byte 0: no '{'`},
		{"bytes behind", `{} {}`, Limits{}, `no usable table of contents: JSON at byte 3: bytes behind the end`},
		{"two lists", `{"entries":[],"entries":[]}`, Limits{}, `no usable table of contents: JSON at byte 24: a second list of entries`},
		{"another version", `{"version":2}`, Limits{}, `no usable table of contents: it is of version 2`},
		{"nested a million deep", `{"x":` + strings.Repeat("[", 1e6), Limits{}, `no usable table of contents: JSON at byte 69: too deep`},
		{"a name of two million bytes", `{"entries":[{"name":"` + strings.Repeat("a", 2e6), Limits{}, `no usable table of contents: JSON at byte 1048598: a string too long`},
		{"a name of two million bytes that aren't UTF-8", `{"entries":[{"name":"` + strings.Repeat("\xff", 2e6), Limits{}, `no usable table of contents: JSON at byte 349547: a string too long`},
		{"a size of 2^63", reg("f", `"size":9223372036854775808`), Limits{}, `no usable table of contents: JSON at byte 75: a number beyond 64 bits`},
		{"a size with an exponent", reg("f", `"size":1e18`), Limits{}, `no usable table of contents: JSON at byte 57: a number that isn't whole`},
		{"an attribute that isn't base64", `{"name":"a","type":"dir","xattrs":{"user.a":"%"}}`, Limits{}, `no usable table of contents: JSON at byte 71: an attribute that isn't base64`},

		{"a name that isn't UTF-8", "{\"name\":\"a\xff\",\"type\":\"dir\"}", Limits{}, `reading TOC: entry 0 "a�": no usable table of contents: it has U+FFFD, which stands for what isn't UTF-8`},
		{"a name that wasn't UTF-8", `{"name":"a\ufffd","type":"dir"}`, Limits{}, `reading TOC: entry 0 "a�": no usable table of contents: it has U+FFFD, which stands for what isn't UTF-8`},
		{"half a surrogate", `{"name":"a\ud800","type":"dir"}`, Limits{}, `reading TOC: entry 0 "a�": no usable table of contents: it has U+FFFD, which stands for what isn't UTF-8`},
		{"a target that wasn't UTF-8", `{"name":"a","linkName":"\ufffd","type":"symlink"}`, Limits{}, `reading TOC: entry 0 "a": no usable table of contents: it has U+FFFD, which stands for what isn't UTF-8`},
		{"an attribute that wasn't UTF-8", `{"name":"a","type":"dir","xattrs":{"user.\ufffd":""}}`, Limits{}, `reading TOC: entry 0 "a": no usable table of contents: it has U+FFFD, which stands for what isn't UTF-8`},
		{"an unknown type", `{"name":"a","type":"door"}`, Limits{}, `reading TOC: entry 0 "a": no usable table of contents: it is of type "door"`},
		{"null", `null`, Limits{}, `reading TOC: entry 0 "": no usable table of contents: it is of type ""`},
		{"no time", `{"name":"a","type":"dir","modtime":"now"}`, Limits{}, `reading TOC: entry 0 "a": no usable table of contents: its time: parsing time "now" as "2006-01-02T15:04:05Z07:00": cannot parse "now" as "2006"`},
		{"a chunk without a digest", reg("f", `"size":10,"offset":5`), Limits{}, `reading TOC: entry 0 "f": no usable table of contents: nothing vouches for the chunk at offset 5`},
		{"a file's digest for one chunk of two", reg("f", `"size":10,"offset":5,"chunkSize":5,"digest":"x"`), Limits{}, `reading TOC: entry 0 "f": no usable table of contents: nothing vouches for the chunk at offset 5`},
		{"a digest of another kind", reg("f", `"size":10,"offset":5,"chunkDigest":"md5:x"`), Limits{}, `reading TOC: entry 0 "f": no usable table of contents: the chunk at offset 5: "md5:x" is not a SHA-256`},
		{"a digest as a path", reg("f", `"size":10,"offset":5,"chunkDigest":"sha256:../../etc/passwd"`), Limits{}, `reading TOC: entry 0 "f": no usable table of contents: the chunk at offset 5: "sha256:../../etc/passwd" is not a SHA-256`},
		{"a chunk beyond 64 MiB", reg("f", `"size":67108865,"offset":5,`+sum), Limits{}, `reading TOC: entry 0 "f": no usable table of contents: the chunk at offset 5 has 67108865 bytes`},
		{"a hole beyond 1 GiB", reg("f", `"size":1073741825,"offset":5,"chunkType":"zeros",`+sum), Limits{}, `reading TOC: entry 0 "f": no usable table of contents: a chunk at offset 5, 0 within, of 1073741825 bytes`},
		{"a chunk of an unknown type", reg("f", `"size":10,"offset":5,"chunkType":"dedup",`+sum), Limits{}, `reading TOC: entry 0 "f": no usable table of contents: the chunk at offset 5 is of type "dedup"`},
		{"a chunk far within a member", reg("f", `"size":10,"offset":5,"innerOffset":1073741824,`+sum), Limits{}, `reading TOC: entry 0 "f": no usable table of contents: a chunk at offset 5, 1073741824 within, of 10 bytes`},
		{"a chunk 2^63-1 within a member", reg("f", `"size":10,"offset":5,"innerOffset":9223372036854775807,`+sum), Limits{}, `reading TOC: entry 0 "f": no usable table of contents: a chunk at offset 5, 9223372036854775807 within, of 10 bytes`},

		{"16 TiB", reg("f", `"size":17592186044416,"offset":5,"chunkType":"zeros",`+sum), Limits{}, `reading TOC: entry 0 "f": the layer exceeds a limit: with its 17592186044416 bytes the layer's files have more than 274877906944`},
		{"16 TiB allowed", reg("f", `"size":17592186044416,"offset":5,"chunkType":"zeros",`+sum), Limits{MaxSize: 1<<63 - 1}, `reading TOC: entry 0 "f": no usable table of contents: a chunk at offset 5, 0 within, of 17592186044416 bytes`},
		{"2^63-1 bytes", reg("f", `"size":9223372036854775807,"offset":5,`+sum), Limits{MaxSize: 1<<63 - 1}, `reading TOC: entry 0 "f": no usable table of contents: a chunk at offset 5, 0 within, of 9223372036854775807 bytes`},
		{"2^63-1 bytes and one", reg("e", `"size":1,"offset":5,`+sum) + "," + reg("f", `"size":9223372036854775807`), Limits{MaxSize: 1<<63 - 1}, `reading TOC: entry 1 "f": the layer exceeds a limit: with its 9223372036854775807 bytes the layer's files have more than 9223372036854775807`},
		{"many bytes together", many(3, reg("f", `"size":500,"offset":5,`+sum)), Limits{MaxSize: 1200}, `reading TOC: entry 2 "f": the layer exceeds a limit: with its 500 bytes the layer's files have more than 1200`},
		{"many entries", many(4, `{"name":"d","type":"dir"}`), Limits{MaxEntries: 3}, `reading TOC: entry 3 "d": the layer exceeds a limit: more than 3 entries`},
		{"many whiteouts", many(4, reg(".wh.x", `"size":0`)), Limits{MaxEntries: 3}, `reading TOC: entry 3 ".wh.x": the layer exceeds a limit: more than 3 entries`},
		{"a TOC beyond the limit", `{"x":"` + strings.Repeat("x", 2000) + `"}`, Limits{MaxSize: 1000}, `inflating TOC at 1000: the layer exceeds a limit: its table of contents has 2008 bytes, more than 1000`},
		{"a name of 70,000 bytes", `{"name":"` + strings.Repeat("n", 70_000) + `","type":"dir"}`, Limits{}, `reading TOC: entry 0 "` + strings.Repeat("n", 200) + `": its name has 70000 bytes`},
		{"a target of 70,000 bytes", `{"name":"l","linkName":"` + strings.Repeat("n", 70_000) + `","type":"symlink"}`, Limits{}, `reading TOC: entry 0 "l": its target has 70000 bytes`},
		{"an attribute of 300,000 bytes", attributes(1, 300_000), Limits{}, `reading TOC: entry 0 "a": attributes of more than 262144 bytes`},
		{"5,000 attributes", attributes(5000, 0), Limits{}, `reading TOC: entry 0 "a": attributes of more than 262144 bytes`},
		{"uid -1", `{"name":"a","type":"dir","uid":-1}`, Limits{}, `reading TOC: entry 0 "a": uid -1`},
		{"gid 2^32", `{"name":"a","type":"dir","gid":4294967296}`, Limits{}, `reading TOC: entry 0 "a": gid 4294967296`},
		{"major -5", `{"name":"a","type":"char","devMajor":-5}`, Limits{}, `reading TOC: entry 0 "a": major -5`},
		{"minor 2^63-1", `{"name":"a","type":"block","devMinor":9223372036854775807}`, Limits{}, `reading TOC: entry 0 "a": minor 9223372036854775807`},

		{"a size below zero", reg("f", `"size":-10`), Limits{}, `reading TOC: entry 0 "f": size -10`},
		{"a chunk beyond the data", reg("f", `"size":10,"offset":1000,`+sum), Limits{}, `reading TOC: entry 0 "f": a chunk at offset 1000: the blob's data ends at 1000`},
		{"a chunk at 2^63-1", reg("f", `"size":10,"offset":9223372036854775807,`+sum), Limits{}, `reading TOC: entry 0 "f": a chunk at offset 9223372036854775807: the blob's data ends at 1000`},
		{"a chunk before the blob", reg("f", `"size":10,"offset":-1,`+sum), Limits{}, `reading TOC: entry 0 "f": a chunk at offset -1: the blob's data ends at 1000`},
		{"a chunk before its member", reg("f", `"size":10,"offset":5,"innerOffset":-1,`+sum), Limits{}, `reading TOC: entry 0 "f": a chunk at offset 5, -1 within`},
		{"a chunk of -1 bytes", reg("f", `"size":10,"offset":5,"chunkSize":-1,`+sum), Limits{}, `reading TOC: entry 0 "f": a chunk of -1 bytes at 0 of 10`},
		{"a chunk beyond its file", reg("f", `"size":10,"offset":5,"chunkSize":11,`+sum), Limits{}, `reading TOC: entry 0 "f": a chunk of 11 bytes at 0 of 10`},
		{"a chunk missing at the end", reg("f", `"size":10,"offset":5,"chunkSize":5,`+sum), Limits{}, `reading TOC: entry 0 "f": its chunks have 5 bytes, the file has 10`},
		{"a chunk missing before another file", reg("f", `"size":10,"offset":5,"chunkSize":5,`+sum) + "," + reg("g", `"size":0`), Limits{}, `reading TOC: entry 0 "f": its chunks have 5 bytes, the file has 10`},
		{"a chunk missing between", reg("f", `"size":10,"offset":5,"chunkSize":5,`+sum) + chunk(`"chunkOffset":6,`+sum), Limits{}, `reading TOC: entry 0 "f": a chunk at 6 where 5 is next`},
		{"a chunk doubled", reg("f", `"size":10,"offset":5,"chunkSize":5,`+sum) + chunk(`"chunkOffset":0,"chunkSize":5,`+sum), Limits{}, `reading TOC: entry 0 "f": a chunk at 0 where 5 is next`},
		{"a chunk too many", reg("f", `"size":10,"offset":5,`+sum) + chunk(`"chunkOffset":10,`+sum), Limits{}, `reading TOC: entry 0 "f": a chunk of 0 bytes at 10 of 10`},
		{"a chunk of nothing", `{"type":"chunk","name":"f"}`, Limits{}, `reading TOC: entry 0 "f": a chunk that belongs to no file`},
		{"a chunk of a directory", `{"type":"dir","name":"f"}` + chunk(`"name":"f"`), Limits{}, `reading TOC: entry 1 "f": a chunk that belongs to no file`},
		{"a chunk of another file", reg("f", `"size":10,"offset":5,"chunkSize":5,`+sum) + chunk(`"name":"g","chunkOffset":5,`+sum), Limits{}, `reading TOC: entry 0 "f": behind it is a chunk of "g"`},
		{"chunks that overlap", reg("f", `"size":10,"offset":5,`+sum) + "," + reg("g", `"size":10,"offset":5,"innerOffset":9,`+sum), Limits{}, `reading TOC: entry 1 "g": a chunk at offset 5, 9 within, overlaps another one`},
		{"two digests for the same bytes", reg("f", `"size":10,"offset":5,`+sum) + "," + reg("g", `"size":10,"offset":5,`+other), Limits{}, `reading TOC: entry 1 "g": a chunk at offset 5, 0 within, overlaps another one`},
		{"an end at the start", reg("f", `"size":10,"offset":5,"endOffset":5,`+sum), Limits{}, `reading TOC: entry 0 "f": a chunk at offset 5 ends at 5`},
		{"an end below zero", reg("f", `"size":10,"offset":5,"endOffset":-5,`+sum), Limits{}, `reading TOC: entry 0 "f": a chunk at offset 5 ends at -5`},
		{"an end beyond the data", reg("f", `"size":10,"offset":5,"endOffset":1001,`+sum), Limits{}, `reading TOC: entry 0 "f": a chunk at offset 5 reaches to 1001, where 1000 is not its own`},
		{"an end in another's member", reg("e", `"size":0`) + "," + reg("f", `"size":10,"offset":5,"endOffset":60,`+sum) + "," + reg("g", `"size":10,"offset":50,`+sum), Limits{}, `reading TOC: entry 1 "f": a chunk at offset 5 reaches to 60, where 50 is not its own`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			toc := tt.toc
			if whole := regexp.MustCompile(`^(\{"(version|entries|x)"|\[|\{\})`); !whole.MatchString(toc) {
				toc = `{"version":1,"entries":[` + toc + `]}`
			}
			h := sealed(t, toc)
			refused(t, tt.want, func() (*Index, error) { return ReadTOC(t.Context(), blobtest.Bytes(h.b), h.d, tt.lim) })
		})
	}
}

// TestHostileTOCPlace has TOCs that aren't where the manifest or the footer says, or not what these vouch for.
func TestHostileTOCPlace(t *testing.T) {
	toc := `{"version":1,"entries":[]}`
	gzipped := func(change func(h *hostile)) hostile {
		h := sealed(t, toc)
		h.d.Annotations = maps.Clone(h.d.Annotations)
		change(&h)
		return h
	}
	// replaced has something else in the place of the TOC's member.
	replaced := func(member []byte) hostile {
		return gzipped(func(h *hostile) { h.b = slices.Concat(h.b[:1000], member, h.b[len(h.b)-footerSize:]) })
	}
	size := len(sealed(t, toc).b)
	footed := func(digits string) hostile {
		return gzipped(func(h *hostile) { copy(h.b[len(h.b)-footerSize+16:], digits) })
	}
	zb, zd, _ := containersImage(t, makeTar(t, reg("a", "b")))
	var off, clen, ulen int64
	fmt.Sscanf(zd.Annotations[imagePosition], "%d:%d:%d:1", &off, &clen, &ulen)
	positioned := func(format string, a ...any) hostile {
		d := zd
		d.Annotations = map[string]string{imagePosition: fmt.Sprintf(format, a...), imageChecksum: zd.Annotations[imageChecksum]}
		return hostile{b: zb, d: d}
	}
	huge := makeTar(t, reg(tocName, toc))
	wide := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 18 << 3, 1, 0, 0} // a zstd frame with a window of 256 MiB, and an empty block
	for _, tt := range []struct {
		name string
		in   hostile
		want string
	}{
		{"no annotation", gzipped(func(h *hostile) { h.d.Annotations = nil }), `no usable table of contents: the manifest vouches for none`},
		{"an annotation of another kind", gzipped(func(h *hostile) { h.d.Annotations[tocDigest] = "sha512:00" }), `no usable table of contents: its annotation: "sha512:00" is not a SHA-256`},
		{"an annotation that is a path", gzipped(func(h *hostile) { h.d.Annotations[tocDigest] = "../../etc/passwd" }), `no usable table of contents: its annotation: "../../etc/passwd" is not a SHA-256`},
		{"another digest", gzipped(func(h *hostile) { h.d.Annotations[tocDigest] = digestOf(nil).String() }), `digest mismatch: the TOC at 1000 is sha256:…, the manifest says sha256:…`},
		{"a tiny blob", gzipped(func(h *hostile) { h.b = h.b[:46] }), `no usable table of contents: the blob has 46 bytes`},
		{"the footer cut", gzipped(func(h *hostile) { h.b = h.b[:len(h.b)-1] }), `no usable table of contents: the blob has no eStargz footer`},
		{"the footer's offset beyond the blob", footed("0000000000ffffff"), fmt.Sprintf(`reading TOC: the footer says that it is at 16777215 of %d`, size)},
		{"the footer's offset at 2^63-1", footed("7fffffffffffffff"), fmt.Sprintf(`reading TOC: the footer says that it is at 9223372036854775807 of %d`, size)},
		{"the footer's offset at 2^63", footed("8000000000000000"), `no usable table of contents: the blob has no eStargz footer`},
		{"the footer's offset elsewhere", footed("0000000000000010"), `inflating TOC at 16: invalid header at offset 0`},
		{"no tar", replaced(gz(t, []byte("no tar"))), `inflating TOC at 1000: unexpected EOF`},
		{"the member cut", replaced(gz(t, makeTar(t, reg(tocName, toc)))[:60]), `inflating TOC at 1000: unexpected EOF`},
		{"another file", replaced(gz(t, makeTar(t, reg("etc/shadow", toc)))), `inflating TOC at 1000: no usable table of contents: in its place is "etc/shadow"`},
		{"a bomb", replaced(gz(t, rawHeader(tocName, '0', func(h []byte) { copy(h[124:], "77777777777\x00") }))), `inflating TOC at 1000: no usable table of contents: it has 8589934591 bytes, more than 536870912`},
		{"2^63-1 bytes", replaced(gz(t, rawHeader(tocName, '0', func(h []byte) { base256(h[124:136], 1<<63-1) }))), `inflating TOC at 1000: no usable table of contents: it has 9223372036854775807 bytes, more than 536870912`},
		{"a size below zero", replaced(gz(t, rawHeader(tocName, '0', func(h []byte) { base256(h[124:136], -1) }))), `inflating TOC at 1000: archive/tar: invalid tar header`},
		{"fewer bytes than the header says", replaced(gz(t, huge[:512+10])), `inflating TOC at 1000: unexpected EOF`},

		{"no position", positioned("1:-2:3:1"), `no usable table of contents: its position is "1:-2:3:1"`},
		{"a position beyond 63 bits", positioned("1:2:9223372036854775808:1"), `no usable table of contents: its position is "1:2:9223372036854775808:1"`},
		{"a position of another type", positioned("%d:%d:%d:2", off, clen, ulen), fmt.Sprintf(`no usable table of contents: its position is "%d:%d:%d:2"`, off, clen, ulen)},
		{"a position in a header", positioned("1:%d:%d:1", clen, ulen), fmt.Sprintf(`reading TOC: its annotation says that it is at 1+%d of %d`, clen, len(zb))},
		{"a position beyond the blob", positioned("%d:%d:%d:1", off, len(zb), ulen), fmt.Sprintf(`reading TOC: its annotation says that it is at %d+%d of %d`, off, len(zb), len(zb))},
		{"a position of 2^63-1", positioned("9223372036854775807:8:8:1"), fmt.Sprintf(`reading TOC: its annotation says that it is at 9223372036854775807+8 of %d`, len(zb))},
		{"a position of nothing", positioned("%d:0:%d:1", off, ulen), fmt.Sprintf(`reading TOC: its annotation says that it is at %d+0 of %d`, off, len(zb))},
		{"a position elsewhere", positioned("%d:%d:%d:1", off-1, clen, ulen), fmt.Sprintf(`digest mismatch: the TOC at %d is sha256:…, the manifest says sha256:…`, off-1)},
		{"a length beyond 512 MiB", positioned("%d:%d:536870913:1", off, clen), `no usable table of contents: it has 536870913 bytes, more than 536870912`},
		{"more than the length", positioned("%d:%d:%d:1", off, clen, ulen-1), fmt.Sprintf(`inflating TOC at %d: more than the %d bytes that its annotation says`, off, ulen-1)},
		{"less than the length", positioned("%d:%d:%d:1", off, clen, ulen+1), fmt.Sprintf(`inflating TOC at %d: unexpected EOF`, off)},
		{"a window of 256 MiB", zstdTOC(wide, 100), `inflating TOC at 8: window size exceeded`},
		{"no zstd", zstdTOC([]byte("no zstd at all"), 100), `inflating TOC at 8: invalid input: magic number mismatch`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			refused(t, tt.want, func() (*Index, error) { return ReadTOC(t.Context(), blobtest.Bytes(tt.in.b), tt.in.d, tt.in.lim) })
		})
	}
}

// zstdTOC is a layer of nothing but a TOC, which is said to inflate to size bytes.
func zstdTOC(packed []byte, size int) hostile {
	b := skippable(packed)
	d := descriptor(b)
	d.Annotations = map[string]string{imagePosition: fmt.Sprintf("8:%d:%d:1", len(packed), size), imageChecksum: digestOf(packed).String()}
	return hostile{b: b, d: d}
}

// TestHostileVerify has layers whose TOC is what the manifest vouches for and can be read, but says something else than the tar, which
// is what its digests say.
func TestHostileVerify(t *testing.T) {
	type entry = map[string]any
	b, _, _ := eStargz()(t, makeTar(t, reg("a", "one"), reg("b", "two"), reg("etc/passwd", "root"), reg("etc/shadow", "")))
	tocAt, _, ok := parseFooter(b)
	if !ok {
		t.Fatal("no footer")
	}
	r, _, err := untarTOC(bytes.NewReader(b[tocAt:]), Limits{}.withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		lie  func(e []entry) []entry // a, b, etc/passwd, etc/shadow: eStargz's own before and the TOC's behind are left out
		want string
	}{
		{"a mode", func(e []entry) []entry { e[0]["mode"] = 0o104755; return e }, `entry 0 "a": mode 0644 in the tar, 04755 in the table of contents`},
		{"an owner", func(e []entry) []entry { e[1]["uid"] = 7; return e }, `entry 1 "b": uid 0 in the tar, 7 in the table of contents`},
		{"a type", func(e []entry) []entry { e[3] = entry{"name": "etc/shadow", "type": "fifo"}; return e }, `entry 3 "etc/shadow": type reg in the tar, fifo in the table of contents`},
		{"a time", func(e []entry) []entry { e[0]["modtime"] = "2030-01-01T00:00:00Z"; return e }, `entry 0 "a": time 1000000000.000000000 in the tar, 1893456000.000000000 in the table of contents`},
		{"an attribute", func(e []entry) []entry { e[0]["xattrs"] = entry{"security.capability": "AQ=="}; return e }, `entry 0 "a": attribute "security.capability" is in the table of contents, not in the tar`},
		{"an entry missing", func(e []entry) []entry { return e[1:] }, `entry 0 "a": name "a" in the tar, "b" in the table of contents`},
		{"the last entry missing", func(e []entry) []entry { return e[:3] }, `entry 3 "etc/shadow": is in the tar, not in the table of contents`},
		{"all entries missing", func(e []entry) []entry { return nil }, `entry 0 "a": is in the tar, not in the table of contents`},
		{"an entry doubled", func(e []entry) []entry { return append(e[:1:1], e...) }, `entry 1 "b": name "b" in the tar, "a" in the table of contents`},
		{"an entry too many", func(e []entry) []entry { return append(e, entry{"name": "x", "type": "dir"}) }, `entry 4 "x": is in the table of contents, not in the tar`},
		{"a whiteout", func(e []entry) []entry { return append([]entry{{"name": ".wh.etc", "type": "reg"}}, e...) }, `entry 0 "a": name "a" in the tar, ".wh.etc" in the table of contents`},
		{"an opaque directory", func(e []entry) []entry { return append(e, entry{"name": "etc/.wh..wh..opq", "type": "reg"}) }, `entry 4 "etc/.wh..wh..opq": is in the table of contents, not in the tar`},
		{"another file's content", func(e []entry) []entry {
			e[0]["offset"], e[0]["chunkDigest"], e[0]["digest"] = e[1]["offset"], e[1]["chunkDigest"], e[1]["digest"]
			return e
		}, `entry 0 "a": chunk 0, 3 bytes from 0 on, sha256:… in the tar, sha256:… in the table of contents`},
		{"a shorter content", func(e []entry) []entry { e[2]["size"] = 3; return e }, `entry 2 "etc/passwd": size 4 in the tar, 3 in the table of contents`},
		{"a hard link for a file", func(e []entry) []entry {
			e[3] = entry{"name": "etc/shadow", "type": "hardlink", "linkName": "etc/passwd"}
			return e
		}, `entry 3 "etc/shadow": type reg in the tar, hardlink in the table of contents`},
		{"a name that climbs out", func(e []entry) []entry { e[0]["name"] = "../../b"; return e }, `entry 0 "a": name "a" in the tar, "../../b" in the table of contents`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var toc struct {
				Version int     `json:"version"`
				Entries []entry `json:"entries"`
			}
			if err := json.Unmarshal(raw, &toc); err != nil {
				t.Fatal(err)
			}
			toc.Entries = slices.DeleteFunc(toc.Entries, func(e entry) bool { return added(fmt.Sprint(e["name"])) || e["name"] == "etc/" })
			toc.Entries = tt.lie(toc.Entries)
			lying, err := json.Marshal(toc)
			if err != nil {
				t.Fatal(err)
			}
			b := seal(t, b[:tocAt], string(lying), false)
			z, err := gzip.NewReader(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			plain, err := io.ReadAll(z)
			if err != nil {
				t.Fatal(err)
			}
			ix, err := tocOf(t, b, digestOf(lying).String())
			if err != nil {
				t.Fatal(err)
			}
			refused(t, "the table of contents differs from the tar: "+tt.want, func() (*Index, error) {
				return nil, Verify(bytes.NewReader(b), descriptor(b), digestOf(plain), ix, Limits{})
			})
		})
	}
}
