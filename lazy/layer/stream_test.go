package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pexfs/pex/lazy/tree"
)

func TestStreamEntries(t *testing.T) {
	at := time.Unix(-2, 250_000_000)
	for _, tt := range []struct {
		name string
		in   member
		want tree.Entry
	}{
		{
			"fraction before 1970, big ids",
			member{tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o7755, ModTime: at, Uid: 1 << 31, Gid: 1<<32 - 1, Format: tar.FormatPAX}, ""},
			tree.Entry{Name: "d/", Type: tree.Dir, Mode: 0o7755, Mtime: tree.Time{Sec: -2, Nsec: 250_000_000}, UID: 1 << 31, GID: 1<<32 - 1},
		},
		{
			"numbers in base 256",
			member{tar.Header{Typeflag: tar.TypeDir, Name: "d", ModTime: time.Unix(-7, 0), Uid: 1 << 25, Gid: 9, Format: tar.FormatGNU}, ""},
			tree.Entry{Name: "d", Type: tree.Dir, Mtime: tree.Time{Sec: -7}, UID: 1 << 25, GID: 9},
		},
		{
			"a name that isn't UTF-8",
			member{tar.Header{Typeflag: tar.TypeSymlink, Name: "\xff\xfe" + strings.Repeat("n", 300), Linkname: "\x80", Format: tar.FormatGNU}, ""},
			tree.Entry{Name: "\xff\xfe" + strings.Repeat("n", 300), Linkname: "\x80", Type: tree.Symlink},
		},
		{
			"attributes: star's before libarchive's",
			member{tar.Header{Typeflag: tar.TypeFifo, Name: "p", PAXRecords: map[string]string{
				"SCHILY.xattr.user.a": "star\x00\n", "LIBARCHIVE.xattr.user.a": "bm90IHRoaXM", "LIBARCHIVE.xattr.user.%C3%A4%3D": "AP8", "LIBARCHIVE.xattr.user.pad": "AA==",
				"SCHILY.acl.access": "no attribute",
			}}, ""},
			tree.Entry{Name: "p", Type: tree.Fifo, Xattrs: []tree.Xattr{{Name: "user.a", Value: []byte("star\x00\n")}, {Name: "user.pad", Value: []byte{0}}, {Name: "user.ä=", Value: []byte{0, 0xff}}}},
		},
		{
			"device",
			member{tar.Header{Typeflag: tar.TypeBlock, Name: "b", Devmajor: 4095, Devminor: 1<<20 - 1}, ""},
			tree.Entry{Name: "b", Type: tree.Block, Major: 4095, Minor: 1<<20 - 1},
		},
		{
			"file with a link target",
			member{tar.Header{Typeflag: tar.TypeReg, Name: ".wh.x", Linkname: "left/over"}, ""},
			tree.Entry{Name: ".wh.x", Type: tree.Regular},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.in.ModTime.IsZero() {
				tt.in.ModTime = time.Unix(0, 0)
			}
			src := makeTar(t, tt.in)
			got, err := stream(t, src, digestOf(src), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			sameEntries(t, got.Entries, []tree.Entry{tt.want})
		})
	}
}

func TestStreamLeavesOut(t *testing.T) {
	global := member{tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "x", "SCHILY.xattr.user.g": "g"}}, ""}
	src := makeTar(t, global, reg("a", "1"), reg("./.prefetch.landmark", "\x0f"), reg(".no.prefetch.landmark", "\x0f"), reg("/stargz.index.json", "{}"), reg("d/stargz.index.json", "2"))
	got, err := stream(t, src, digestOf(src), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range got.Entries {
		names = append(names, e.Name+"="+got.content(e))
		if len(e.Xattrs) > 0 {
			t.Errorf("%s has attributes", e.Name)
		}
	}
	if d := cmp.Diff([]string{"a=1", "d/stargz.index.json=2"}, names); d != "" {
		t.Error(d)
	}
	got.check(t)
}

func TestStreamSparse(t *testing.T) {
	const at, size = 1 << 20, 3<<20 + 5
	src := append(oldSparse("s", at, size), make([]byte, 1024)...)
	got, err := stream(t, src, digestOf(src), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat("\x00", at) + strings.Repeat("x", 512)
	want += strings.Repeat("\x00", size-len(want))
	if len(got.Entries) != 1 || got.Entries[0].Size != size || got.content(got.Entries[0]) != want {
		t.Errorf("got %+v", got.Entries)
	}
	got.check(t)
}

// counting counts the bytes written.
type counting struct {
	memory
	n int
}

func (c *counting) WriteAt(p []byte, off int64) (int, error) {
	c.n += len(p)
	return c.memory.WriteAt(p, off)
}

func TestStreamLeavesHolesInSpool(t *testing.T) {
	body := strings.Repeat("\x00", 5<<20) + "x" + strings.Repeat("\x00", 5<<20)
	src := makeTar(t, reg("a", body), reg("b", "b"), reg("c", strings.Repeat("\x00", 1<<20)))
	var spool, leaves counting
	ix, err := Stream(t.Context(), bytes.NewReader(src), descriptor(src), digestOf(src), &spool, &leaves, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if spool.n > 64<<10 {
		t.Errorf("%d bytes were written", spool.n)
	}
	s := streamed{ix, spool.memory, leaves.memory}
	s.check(t)
	if s.content(ix.Entries[0]) != body {
		t.Error("another content")
	}
}

// TestStreamTruncated has descriptors that vouch for truncated blobs: the formats must notice by themselves.
func TestStreamTruncated(t *testing.T) {
	src := makeTar(t, reg("a", text(700, 1)), reg("b", "b"))
	for name, b := range map[string][]byte{"gzip": gz(t, src[:600], src[600:]), "zstd": zst(t, src)} {
		for n := range len(b) {
			got, err := stream(t, b[:n], digestOf(src), Limits{})
			if err == nil {
				t.Errorf("%s cut to %d of %d bytes gave %d entries", name, n, len(b), entries(got))
			}
		}
	}
	for n := range len(src) {
		if edge := n % 512; edge > 2 && edge < 510 && n%13 != 0 && n != 512+700 && n != 512+699 {
			continue // more of the same
		}
		cut := src[:n]
		got, err := stream(t, cut, digestOf(cut), Limits{})
		// The tar may end where an entry's bytes do. Blocks of zeros may be missing, but not be cut.
		const endA, endB, last = 512 + 700, 512 + 1024 + 512 + 1, 512 + 1024 + 1024
		ok := n == 0 || n >= endA && n <= 512+1024 || n >= endB && n <= last || n == last+512
		if ok != (err == nil) {
			t.Errorf("tar cut to %d bytes gave %d entries, %v", n, entries(got), err)
		}
	}
}

func entries(s *streamed) int {
	if s.Index == nil {
		return 0
	}
	return len(s.Entries)
}

func TestStreamFlippedBits(t *testing.T) {
	src := makeTar(t, reg("a", text(700, 1)), reg("b", "b"))
	for name, b := range map[string][]byte{"plain": src, "gzip": gz(t, src), "zstd": zst(t, src)} {
		for i := 0; i < len(b)*8; i += 37 {
			bad := bytes.Clone(b)
			bad[i/8] ^= 1 << (i % 8)
			var s streamed
			if _, err := Stream(t.Context(), bytes.NewReader(bad), descriptor(b), digestOf(src), &s.spool, &s.leaves, Limits{}); err == nil {
				t.Errorf("%s with bit %d flipped was taken", name, i)
			}
			// whoever vouches for the bad blob still has to state the diffID
			if got, err := stream(t, bad, digestOf(src), Limits{}); err == nil && got.content(got.Entries[0]) != text(700, 1) {
				t.Errorf("%s with bit %d flipped gave another content", name, i)
			}
		}
	}
}

var errBoom = errors.New("boom")

type failing struct{}

func (failing) WriteAt([]byte, int64) (int, error) { return 0, errBoom }

// TestStreamErrors has what fails though the layer is good. TestHostileStream has layers that aren't.
func TestStreamErrors(t *testing.T) {
	src := makeTar(t, reg("first", "abc"), reg("second", text(100_000, 1)))
	good := gz(t, src)
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(io.ErrClosedPipe)
	for _, tt := range []struct {
		name          string
		ctx           context.Context
		r             io.Reader
		spool, leaves io.WriterAt
		is            error
		want          string
	}{
		{"source", t.Context(), &slow{bytes.NewReader(good[:5000]), errBoom}, discard{}, discard{}, errBoom, "boom"},
		{"source that ends", t.Context(), bytes.NewReader(good[:5000]), discard{}, discard{}, io.ErrUnexpectedEOF, `entry 1 "second": inflating gzip: unexpected EOF`},
		{"spool", t.Context(), bytes.NewReader(good), failing{}, discard{}, errBoom, "writing spool: boom"},
		{"leaves", t.Context(), bytes.NewReader(good), discard{}, failing{}, errBoom, "writing leaves: boom"},
		{"context", ended, bytes.NewReader(good), discard{}, discard{}, io.ErrClosedPipe, "closed pipe"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ix, err := Stream(tt.ctx, tt.r, descriptor(good), digestOf(src), tt.spool, tt.leaves, Limits{})
			if ix != nil || !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Stream gave %v, %v", ix, err)
			}
		})
	}
}

// stuck gives some bytes, and then nothing until its context ends.
type stuck struct {
	ctx context.Context
	r   io.Reader
}

func (s *stuck) Read(p []byte) (int, error) {
	if n, err := s.r.Read(p); err == nil {
		return n, nil
	}
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

func TestStreamEndsWithContext(t *testing.T) {
	src := makeTar(t, reg("a", text(1<<20, 1)))
	for form, b := range map[string][]byte{"plain": src, "gzip": gz(t, src), "zstd": zst(t, src)} {
		t.Run(form, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err := Stream(ctx, &stuck{ctx, bytes.NewReader(b[:len(b)/2])}, descriptor(b), digestOf(src), new(memory), new(memory), Limits{})
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error %v", err)
				}
			})
		})
	}
}

func TestStreamProgress(t *testing.T) {
	src := makeTar(t, reg("a", text(3<<20, 1)))
	b := gz(t, src)
	var steps []int64
	if _, err := stream(t, b, digestOf(src), Limits{Progress: func(n int64) { steps = append(steps, n) }}); err != nil {
		t.Fatal(err)
	}
	if len(steps) < 2 || steps[len(steps)-1] != int64(len(b)) {
		t.Errorf("steps %v of %d", steps, len(b))
	}
	for i := 1; i < len(steps); i++ {
		if steps[i] <= steps[i-1] {
			t.Errorf("steps %v", steps)
		}
	}
}

func TestStreamByteByByte(t *testing.T) {
	src := makeTar(t, sample()...)
	b := gz(t, src)
	var s streamed
	var err error
	s.Index, err = Stream(t.Context(), &slow{r: bytes.NewReader(b)}, descriptor(b), digestOf(src), &s.spool, &s.leaves, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	s.check(t)
}

// FuzzStream feeds blobs whose digests are right. Whatever comes must be consistent, and must not take much memory.
func FuzzStream(f *testing.F) {
	small := makeTar(f, reg("a", text(700, 1)), member{tar.Header{Typeflag: tar.TypeSymlink, Name: strings.Repeat("l", 200), Linkname: "a"}, ""})
	f.Add(small)
	f.Add(gz(f, small))
	f.Add(zst(f, small))
	f.Add(append(oldSparse("s", 4096, 1<<20), make([]byte, 1024)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s streamed
		lim := Limits{MaxSize: 4 << 20, MaxEntries: 1000}
		// the diffID isn't known before: let the first run say it
		_, err := Stream(t.Context(), bytes.NewReader(b), descriptor(b), digestOf(nil), new(memory), new(memory), lim)
		_, diffID, found := strings.Cut(fmt.Sprint(err), "the diffID is sha256:")
		if err != nil && !found {
			return
		}
		want := digestOf(nil)
		if found {
			want.Hex = diffID[:64]
		}
		s.Index, err = Stream(t.Context(), bytes.NewReader(b), descriptor(b), want, &s.spool, &s.leaves, lim)
		if err != nil {
			t.Fatalf("first %v", err)
		}
		s.check(t)
		roundTrip(t, s.Index)
	})
}

type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

func BenchmarkStream(b *testing.B) {
	var members []member
	for i := range 200 {
		members = append(members, reg(fmt.Sprint("f", i), text(100_000, uint64(i))))
	}
	src := makeTar(b, members...)
	for _, form := range []struct {
		name string
		blob []byte
	}{{"plain", src}, {"gzip", gz(b, src)}, {"zstd", zst(b, src)}} {
		b.Run(form.name, func(b *testing.B) {
			b.SetBytes(int64(len(src)))
			for b.Loop() {
				if _, err := Stream(b.Context(), bytes.NewReader(form.blob), descriptor(form.blob), digestOf(src), discard{}, discard{}, Limits{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	if path, err := exec.LookPath("gzip"); err == nil {
		packed := gz(b, src)
		b.Run("gzip -dc", func(b *testing.B) {
			b.SetBytes(int64(len(src)))
			for b.Loop() {
				cmd := exec.CommandContext(b.Context(), path, "-dc")
				cmd.Stdin = bytes.NewReader(packed)
				if err := cmd.Run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
