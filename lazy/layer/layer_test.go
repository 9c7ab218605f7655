package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/tree"
)

// TestMain lets the heap grow: the tests make many large buffers that don't last, on a heap so small that the collector would never rest.
func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	m.Run()
}

// member is a tar entry and its content.
type member struct {
	tar.Header
	body string
}

func reg(name, body string) member {
	return member{header(name, len(body)), body}
}

// header is a file's, without its content.
func header(name string, size int) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(size), ModTime: time.Unix(1e9, 0)}
}

func makeTar(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		if err := w.WriteHeader(&m.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// rawHeader is an entry's header in GNU's format, of a size of 0, with a change that tar.Writer would not make.
func rawHeader(name string, typ byte, change func(h []byte)) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x0000000000000\x0000000000000\x00")
	h[156] = typ
	copy(h[257:], "ustar  \x00")
	change(h)
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

// base256 writes a number as GNU tar does where octal digits don't do.
func base256(field []byte, v int64) {
	for i := range field {
		field[i] = byte(v >> 63)
	}
	binary.BigEndian.PutUint64(field[len(field)-8:], uint64(v))
	field[0] |= 0x80
}

// oldSparse is an old-GNU sparse file of size bytes that has 512 bytes of 'x' at offset at.
func oldSparse(name string, at, size int64) []byte {
	h := rawHeader(name, 'S', func(h []byte) {
		copy(h[124:], fmt.Sprintf("%011o\x00", 512))
		base256(h[386:398], at)
		copy(h[398:], fmt.Sprintf("%011o\x00", 512))
		base256(h[410:422], size)
		copy(h[422:], fmt.Sprintf("%011o\x00", 0))
		base256(h[483:495], size)
	})
	return append(h, bytes.Repeat([]byte{'x'}, 512)...)
}

// text is n bytes that shrink to about a quarter, the same in every run.
func text(n int, seed uint64) string {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = "aabbccdd\n efgh  "[r.IntN(16)]
	}
	return string(b)
}

// sample is a layer with something of everything that a TOC can hold.
func sample() []member {
	dir := func(name string) member {
		return member{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o1777, ModTime: time.Unix(1e9, 0)}, ""}
	}
	special := func(name string, typ byte, major, minor int64) member {
		return member{tar.Header{Typeflag: typ, Name: name, Mode: 0o600, Devmajor: major, Devminor: minor, Uid: 7, Gid: 1 << 22}, ""}
	}
	setuid := reg("bin/su", "#!")
	setuid.Mode = 0o4755
	setuid.PAXRecords = map[string]string{"SCHILY.xattr.user.b": "2\x00\xff", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02", "SCHILY.xattr.user.empty": " "}
	old := reg("old", "x")
	old.ModTime, old.Format = time.Unix(-5, 0), tar.FormatPAX
	return []member{
		dir("./"), dir("./bin/"), setuid, old,
		reg("bin/empty", ""), reg("bin/.wh.gone", ""), reg("bin/.wh..wh..opq", ""),
		reg("one block", text(4096, 1)), reg("small", "abc"), reg("same as small", "abc"),
		reg("big", text(300_000, 2)), reg("zeros", strings.Repeat("\x00", 200_000)),
		reg("sparse", "a"+strings.Repeat("\x00", 400_000)+"b"), reg("größe", text(70_000, 3)),
		special("tty", tar.TypeChar, 5, 1), special("sda", tar.TypeBlock, 259, 70000), special("pipe", tar.TypeFifo, 0, 0),
		{tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "../big"}, ""},
		{tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "elsewhere", Mode: 0o640}, ""},
		reg("last", text(9000, 4)),
	}
}

func gz(t testing.TB, pieces ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, p := range pieces {
		w := gzip.NewWriter(&b)
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func zst(t testing.TB, pieces ...[]byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var b []byte
	for _, p := range pieces {
		b = w.EncodeAll(p, b)
	}
	return b
}

// skippable is a zstd frame that holds nothing of the data.
func skippable(b []byte) []byte {
	n := len(b)
	return append([]byte{0x50, 0x2a, 0x4d, 0x18, byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}, b...)
}

func digestOf(b []byte) v1.Hash {
	h := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h[:])}
}

func descriptor(b []byte) v1.Descriptor {
	return v1.Descriptor{Digest: digestOf(b), Size: int64(len(b))}
}

// memory is a file that grows.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(m.b) {
		m.b = append(m.b, make([]byte, need-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

// streamed is a layer that Stream has read.
type streamed struct {
	*Index
	spool, leaves memory
}

func stream(t testing.TB, blob []byte, diffID v1.Hash, lim Limits) (*streamed, error) {
	t.Helper()
	var s streamed
	var err error
	s.Index, err = Stream(t.Context(), bytes.NewReader(blob), descriptor(blob), diffID, &s.spool, &s.leaves, lim)
	return &s, err
}

func (s *streamed) content(e tree.Entry) string {
	if e.Type != tree.Regular || e.Size == 0 {
		return ""
	}
	return string(s.spool.b[s.Contents[e.Content].SpoolOff:][:e.Size])
}

// check sees to it that spool and leaves are as documented.
func (s *streamed) check(t *testing.T) {
	t.Helper()
	end := int64(0)
	for i, c := range s.Contents {
		if c.SpoolOff != end {
			t.Errorf("content %d at %d, want %d", i, c.SpoolOff, end)
		}
		key := sha256.New()
		key.Write(append([]byte("pex blocks 1"), byte(c.Size), byte(c.Size>>8), byte(c.Size>>16), byte(c.Size>>24), 0, 0, 0, 0))
		for off := c.SpoolOff; off < c.SpoolOff+c.Size; off += blockSize {
			end = off + blockSize
			if int64(len(s.spool.b)) < end {
				t.Fatalf("content %d: the spool has %d bytes", i, len(s.spool.b))
			}
			sum := sha256.Sum256(s.spool.b[off:end])
			key.Write(sum[:])
			if !bytes.Equal(sum[:], s.leaves.b[off/blockSize*hashSize:][:hashSize]) {
				t.Errorf("content %d: wrong leaf at %d", i, off)
			}
		}
		if !bytes.Equal(key.Sum(nil), c.Key[:]) {
			t.Errorf("content %d: wrong key", i)
		}
	}
}

// seconds is entries as a TOC has them.
func seconds(entries []tree.Entry) []tree.Entry {
	entries = slices.Clone(entries)
	for i := range entries {
		t := time.Unix(entries[i].Mtime.Sec, int64(entries[i].Mtime.Nsec)).Round(time.Second)
		entries[i].Mtime = tree.Time{Sec: t.Unix()}
	}
	return entries
}

// sameEntries compares entries, but for the numbers of contents.
func sameEntries(t *testing.T, got, want []tree.Entry) {
	t.Helper()
	same := func(a, b tree.Entry) bool {
		a.Content, b.Content = 0, 0
		return sameEntry(a, b)
	}
	if slices.EqualFunc(got, want, same) {
		return
	}
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(tree.Entry{}, "Content")); d != "" {
		t.Errorf("entries (-want +got):\n%s", d)
	}
}

// inOrder is the chunks as they lie in the blob, and the place of each in ix.Chunks.
func inOrder(ix *Index) (chunks []Chunk, place []int) {
	for i := range ix.Chunks {
		place = append(place, i)
	}
	slices.SortFunc(place, func(i, j int) int {
		a, b := ix.Chunks[i], ix.Chunks[j]
		if a.Start != b.Start {
			return int(a.Start - b.Start)
		}
		return int(a.Inner - b.Inner)
	})
	for _, i := range place {
		chunks = append(chunks, ix.Chunks[i])
	}
	return chunks, place
}

// contents reads all contents of a layer by its chunks.
func contents(t testing.TB, ix *Index, blob []byte) ([]string, error) {
	t.Helper()
	parts := make([]string, len(ix.Chunks))
	chunks, place := inOrder(ix)
	base := int64(0)
	if len(chunks) > 0 {
		base = min(chunks[0].Start, int64(len(blob)))
	}
	err := ReadChunks(t.Context(), ix.Format, bytes.NewReader(blob[base:]), base, chunks, func(i int, p []byte) error {
		parts[place[i]] = string(p)
		return nil
	})
	all := make([]string, len(ix.Contents))
	for i, c := range ix.Contents {
		all[i] = strings.Join(parts[c.FirstChunk:c.FirstChunk+c.Chunks], "")
	}
	return all, err
}

// built is a layer as estargz.Build makes it.
func built(t testing.TB, src []byte, opts ...estargz.Option) (b []byte, tocDigest string, diffID v1.Hash) {
	t.Helper()
	opts = append([]estargz.Option{estargz.WithCompressionLevel(gzip.BestSpeed)}, opts...)
	eb, err := estargz.Build(io.NewSectionReader(bytes.NewReader(src), 0, int64(len(src))), opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer eb.Close()
	b, err = io.ReadAll(eb)
	if err != nil {
		t.Fatal(err)
	}
	diffID, err = v1.NewHash(eb.DiffID().String())
	if err != nil {
		t.Fatal(err)
	}
	return b, eb.TOCDigest().String(), diffID
}

// slow gives a byte at a time, and ends with an error instead of EOF if there is one.
type slow struct {
	r   io.Reader
	err error
}

func (s *slow) Read(p []byte) (int, error) {
	n, err := s.r.Read(p[:min(1, len(p))])
	if err == io.EOF && s.err != nil {
		err = s.err
	}
	return n, err
}

var _ blob.Source = (*noRange)(nil)

// noRange is a source whose fetches fail.
type noRange struct {
	size int64
	err  error
}

func (s *noRange) Size() int64 { return s.size }
func (s *noRange) Fetch(context.Context, int64, int64) (io.ReadCloser, error) {
	return nil, s.err
}
