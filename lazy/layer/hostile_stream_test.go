package layer

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// TestHostileStream has layers that are read whole. Their digests are right but where the name says otherwise.
func TestHostileStream(t *testing.T) {
	whole := func(b []byte) hostile { return hostile{b: b, d: descriptor(b), diffID: digestOf(nil)} }
	limited := func(b []byte, lim Limits) hostile {
		h := whole(b)
		h.lim = lim
		return h
	}
	ended := func(b ...[]byte) hostile { return whole(append(slices.Concat(b...), make([]byte, 1024)...)) }
	a := makeTar(t, reg("a", "abc"))[:1024] // without the end
	pax := func(typ byte, name string, records map[string]string) []byte {
		return makeTar(t, member{tar.Header{Typeflag: typ, Name: name, PAXRecords: records}, ""})
	}
	// records are PAX records that tar.Writer would not write.
	records := func(s string) []byte {
		h := rawHeader("x", 'x', func(h []byte) {
			copy(h[257:], "ustar\x0000")
			base256(h[124:136], int64(len(s)))
		})
		return append(append(h, s...), make([]byte, -len(s)&511)...)
	}
	attributes := make(map[string]string)
	for i := range 5000 {
		attributes[fmt.Sprint("SCHILY.xattr.user.", i)] = "v"
	}
	src := makeTar(t, reg("a", "abc"), reg("b", text(5000, 1)))
	stored := gzLevel(t, src, gzip.NoCompression)
	damaged := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 1
		return b
	}
	said := func(b []byte, change func(h *hostile)) hostile {
		h := whole(b)
		h.diffID = digestOf(src)
		change(&h)
		return h
	}
	bomb := gz(t, make([]byte, 1<<20))
	noChecksum := zstFrame(t, src, zstd.WithWindowSize(1<<10))
	for _, tt := range []struct {
		name string
		in   hostile
		want string
	}{
		{"another digest", said(stored, func(h *hostile) { h.d.Digest = digestOf(nil) }), `digest mismatch: the blob is sha256:…, its descriptor says sha256:…`},
		{"another diffID", said(stored, func(h *hostile) { h.diffID = digestOf(nil) }), `digest mismatch: the diffID is sha256:…, the image's configuration says sha256:…`},
		{"another kind of digest", said(stored, func(h *hostile) { h.d.Digest.Algorithm = "md5" }), `digests md5:` + digestOf(stored).Hex + ` and sha256:…: only SHA-256 is supported`},
		{"another kind of diffID", said(stored, func(h *hostile) { h.diffID = v1.Hash{Algorithm: "md5", Hex: "00"} }), `digests sha256:… and md5:00: only SHA-256 is supported`},
		{"shorter than said", said(stored, func(h *hostile) { h.d.Size++ }), `digest mismatch: the blob has 7705 bytes, its descriptor says 7706`},
		{"longer than said", said(stored, func(h *hostile) { h.d.Size-- }), `digest mismatch: the blob has more than 7704 bytes`},

		{"a bomb of many members", limited(bytes.Repeat(bomb, 64), Limits{MaxSize: 8 << 20}), `at offset 8388609 of the tar: the layer exceeds a limit: it inflates to more than 8388608 bytes`},
		{"a bomb in a file", limited(gz(t, append(rawHeader("bomb", '0', func(h []byte) { base256(h[124:136], 1<<40) }), make([]byte, 1<<20)...)), Limits{}), `at offset 512 of the tar: entry 0 "bomb": the layer exceeds a limit: with its 1099511627776 bytes the layer's files have more than 274877906944`},
		{"a bomb behind the end", limited(slices.Concat(stored, bytes.Repeat(bomb, 64)), Limits{MaxSize: 8 << 20}), `at offset 8388609 of the tar: the layer exceeds a limit: it inflates to more than 8388608 bytes`},
		{"a hole of 16 TiB", ended(oldSparse("hole", 0, 16<<40)), `at offset 512 of the tar: entry 0 "hole": the layer exceeds a limit: with its 17592186044416 bytes the layer's files have more than 274877906944`},
		{"a hole of 2^63-1 bytes", limited(append(oldSparse("hole", 0, 1<<63-1), make([]byte, 1024)...), Limits{MaxSize: 1<<63 - 2}), `at offset 512 of the tar: entry 0 "hole": the layer exceeds a limit: with its 9223372036854775807 bytes the layer's files have more than 9223372036854775806`},
		{"many holes", limited(slices.Concat(oldSparse("a", 0, 1<<20), oldSparse("b", 0, 1<<20), oldSparse("c", 0, 1<<20)), Limits{MaxSize: 5 << 19}), `at offset 2560 of the tar: entry 2 "c": the layer exceeds a limit: with its 1048576 bytes the layer's files have more than 2621440`},
		{"many entries", limited(bytes.Repeat(a, 4), Limits{MaxEntries: 3}), `at offset 3584 of the tar: entry 3 "a": the layer exceeds a limit: more than 3 entries`},
		{"2^63-1 bytes", ended(rawHeader("f", '0', func(h []byte) { base256(h[124:136], 1<<63-1) })), `at offset 512 of the tar: entry 0 "f": the layer exceeds a limit: with its 9223372036854775807 bytes the layer's files have more than 274877906944`},
		{"-1 bytes", ended(a, rawHeader("f", '0', func(h []byte) { base256(h[124:136], -1) })), `at offset 1536 of the tar: reading tar behind entry 0 "a": archive/tar: invalid tar header`},
		{"2^63 bytes", ended(records("28 size=9223372036854775808\n"), rawHeader("f", '0', func([]byte) {})), `at offset 1536 of the tar: reading tar: archive/tar: invalid tar header`},
		{"a directory of 2^63-1 bytes", ended(rawHeader("d", '5', func(h []byte) { base256(h[124:136], 1<<63-1) }), rawHeader("z", 'Z', func([]byte) {})), `at offset 1024 of the tar: entry 1 "z": unknown type 'Z'`},

		{"a sparse map that overlaps", ended(rawHeader("s", 'S', func(h []byte) {
			copy(h[124:], "00000001000\x00")
			copy(h[386:], "00000000000\x0000000000400\x0000000000377\x0000000000400\x00")
			copy(h[483:], "00000010000\x00")
		})), `at offset 512 of the tar: reading tar: archive/tar: invalid tar header`},
		{"a sparse map without end", ended(rawHeader("s", 'S', func(h []byte) {
			copy(h[386:], "00000000000\x0000000000000\x00")
			h[482] = 1
		}), bytes.Repeat(append(make([]byte, 504), 1, 0, 0, 0, 0, 0, 0, 0), 1<<12)), `at offset 1049088 of the tar: reading tar: archive/tar: sparse map too long`},
		{"PAX records of 2 MiB", ended(records(strings.Repeat("x", 2<<20))), `at offset 1049089 of the tar: reading tar: archive/tar: header field too long`},
		{"PAX records that are none", ended(records("99 a=b\n")), `at offset 519 of the tar: reading tar: archive/tar: invalid tar header`},
		{"a name of 2 MiB", ended(rawHeader("", 'L', func(h []byte) { base256(h[124:136], 2<<20) }), bytes.Repeat([]byte("n"), 2<<20)), `at offset 1049089 of the tar: reading tar: archive/tar: header field too long`},
		{"a name of 70,000 bytes", whole(pax(tar.TypeDir, strings.Repeat("n", 70_000), nil)), `at offset 71168 of the tar: entry 0 "` + strings.Repeat("n", 200) + `": its name has 70000 bytes`},
		{"a target of 70,000 bytes", whole(makeTar(t, member{tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: strings.Repeat("n", 70_000)}, ""})), `at offset 71168 of the tar: entry 0 "l": its target has 70000 bytes`},
		{"an attribute of 300,000 bytes", whole(pax(tar.TypeDir, "a", map[string]string{"SCHILY.xattr.user.a": strings.Repeat("v", 300_000)})), `at offset 301056 of the tar: entry 0 "a": attributes of more than 262144 bytes`},
		{"5,000 attributes", whole(pax(tar.TypeDir, "a", attributes)), `at offset 140288 of the tar: entry 0 "a": attributes of more than 262144 bytes`},
		{"an attribute that isn't base64", whole(pax(tar.TypeDir, "a", map[string]string{"LIBARCHIVE.xattr.user.a": "%"})), `at offset 1536 of the tar: entry 0 "a": attribute "user.a": illegal base64 data at input byte 0`},
		{"an attribute's name that isn't encoded", whole(pax(tar.TypeDir, "a", map[string]string{"LIBARCHIVE.xattr.user.%zz": "AA"})), `at offset 1536 of the tar: entry 0 "a": attribute "user.%zz": invalid URL escape "%zz"`},
		{"uid -1", ended(rawHeader("f", '0', func(h []byte) { base256(h[108:116], -1) })), `at offset 512 of the tar: entry 0 "f": owner -1:0`},
		{"gid 2^32", ended(rawHeader("f", '0', func(h []byte) { base256(h[116:124], 1<<32) })), `at offset 512 of the tar: entry 0 "f": owner 0:4294967296`},
		{"major -1", ended(rawHeader("c", '3', func(h []byte) { base256(h[329:337], -1) })), `at offset 512 of the tar: entry 0 "c": device -1:0`},
		{"an unknown type", ended(a, rawHeader("z", 'Z', func([]byte) {})), `at offset 1536 of the tar: entry 1 "z": unknown type 'Z'`},
		{"a header whose checksum is wrong", ended(damaged(a, 0)), `at offset 512 of the tar: reading tar: archive/tar: invalid tar header`},
		{"no tar", whole([]byte(text(2000, 1))), `at offset 512 of the tar: reading tar: archive/tar: invalid tar header`},

		{"cut in the first header", whole(a[:511]), `at offset 511 of the tar: reading tar: unexpected EOF`},
		{"cut in a header", whole(slices.Concat(a, a[:100])), `at offset 1124 of the tar: reading tar behind entry 0 "a": unexpected EOF`},
		{"cut in a content", whole(a[:513]), `at offset 513 of the tar: entry 0 "a": unexpected EOF`},
		{"cut in a sparse content", whole(oldSparse("s", 1000, 9000)[:700]), `at offset 700 of the tar: entry 0 "s": unexpected EOF`},
		{"cut in a name", whole(makeTar(t, member{tar.Header{Typeflag: tar.TypeDir, Name: strings.Repeat("n", 900)}, ""})[:600]), `at offset 600 of the tar: reading tar: unexpected EOF`},
		{"gzip cut in its header", whole(stored[:9]), `at offset 0 of the tar: reading tar: inflating gzip: unexpected EOF`},
		{"gzip cut in a content", whole(stored[:3000]), `at offset 2985 of the tar: entry 1 "b": inflating gzip: unexpected EOF`},
		{"gzip cut in its trailer", whole(stored[:len(stored)-1]), `at offset 7680 of the tar: inflating gzip: unexpected EOF`},
		{"gzip cut in the second member's header", whole(slices.Concat(stored, stored[:9])), `at offset 7680 of the tar: inflating gzip: unexpected EOF`},
		{"zstd cut in its header", whole(noChecksum[:5]), `at offset 0 of the tar: reading tar: inflating zstd: unexpected EOF`},
		{"zstd cut in its last block", whole(noChecksum[:len(noChecksum)-1]), `at offset 7680 of the tar: inflating zstd: unexpected EOF`},
		{"zstd cut in a skippable frame", whole(slices.Concat(zst(t, src), skippable(make([]byte, 100))[:50])), `at offset 7680 of the tar: inflating zstd: unexpected EOF`},

		{"gzip whose checksum is wrong", whole(damaged(stored, len(stored)-8)), `at offset 7680 of the tar: inflating gzip: checksum mismatch: 7680 bytes (modulo 2^32) with CRC-32 d16aaeef, its trailer says 7680 with d16aaeee`},
		{"gzip whose length is wrong", whole(damaged(stored, len(stored)-4)), `at offset 7680 of the tar: inflating gzip: checksum mismatch: 7680 bytes (modulo 2^32) with CRC-32 d16aaeef, its trailer says 7681 with d16aaeef`},
		{"gzip whose header's checksum is wrong", whole(gzHeader(t, src, false)), `at offset 0 of the tar: reading tar: inflating gzip: invalid header at offset 0: its CRC-16 differs`},
		{"gzip of another method", whole(damaged(stored, 2)), `at offset 0 of the tar: reading tar: inflating gzip: invalid header at offset 0`},
		{"garbage behind gzip", whole(append(bytes.Clone(stored), "some garbage"...)), `at offset 7680 of the tar: inflating gzip: invalid header at offset 7705`},
		{"zstd whose checksum is wrong", whole(damaged(zst(t, src), len(zst(t, src))-1)), `at offset 0 of the tar: reading tar: inflating zstd: CRC check failed`},
		{"zstd with a window of 256 MiB", whole([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 18 << 3, 1, 0, 0}), `at offset 0 of the tar: reading tar: inflating zstd: window size exceeded`},
		{"zstd with a dictionary", whole([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 1, 1, 0, 0}), `at offset 0 of the tar: reading tar: inflating zstd: unknown dictionary`},
		{"a zstd content of 2^63 bytes", whole(append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0}, append(binary.LittleEndian.AppendUint64(nil, 1<<63), 1, 0, 0)...)), `at offset 0 of the tar: reading tar: inflating zstd: decompressed size exceeds configured limit`},
		{"garbage behind zstd", whole(append(zst(t, src), "some garbage"...)), `at offset 7680 of the tar: inflating zstd: invalid input: magic number mismatch`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			refused(t, tt.want, func() (*Index, error) {
				return Stream(t.Context(), bytes.NewReader(tt.in.b), tt.in.d, tt.in.diffID, discard{}, discard{}, tt.in.lim)
			})
		})
	}
}
