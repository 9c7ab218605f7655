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
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/tree"
)

func TestStreamForms(t *testing.T) {
	src := makeTar(t, sample()...)
	want, err := stream(t, src, digestOf(src), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want.check(t)
	bodies := map[string]string{}
	for _, m := range sample() {
		bodies[m.Name] = m.body
	}
	for _, e := range want.Entries {
		if want.content(e) != bodies[e.Name] {
			t.Errorf("%s has another content", e.Name)
		}
	}
	if len(want.Entries) != len(sample()) {
		t.Fatalf("%d entries", len(want.Entries))
	}
	half := len(src) / 2
	for _, tt := range []struct {
		name string
		blob []byte
	}{
		{"gzip", gz(t, src)},
		{"gzip of several members", gz(t, src[:100], src[100:half], src[half:])},
		{"gzip with empty members", gz(t, nil, src[:half], nil, nil, src[half:], nil)},
		{"zstd", zst(t, src)},
		{"zstd of several frames", zst(t, src[:100], src[100:half], src[half:])},
		{"zstd with skippable frames", bytes.Join([][]byte{skippable(nil), zst(t, src[:half]), skippable([]byte("abc")), zst(t, src[half:]), skippable(make([]byte, 70))}, nil)},
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

func TestStreamTails(t *testing.T) {
	whole := makeTar(t, reg("a", "abc"), reg("b", text(512, 1)))
	bare := whole[:len(whole)-1024]
	for _, tt := range []struct {
		name    string
		tar     []byte
		entries int
	}{
		{"no blocks of zeros at the end", bare, 2},
		{"one block of zeros", whole[:len(whole)-512], 2},
		{"much padding", append(bytes.Clone(whole), make([]byte, 100_000)...), 2},
		{"anything behind the end", append(bytes.Clone(whole), "what is this?"...), 2},
		{"only the end", make([]byte, 1024), 0},
		{"nothing", nil, 0},
	} {
		for form, b := range map[string][]byte{"plain": tt.tar, "gzip": gz(t, tt.tar), "zstd": zst(t, tt.tar)} {
			if form == "zstd" && len(b) == 0 {
				continue // an encoder that makes nothing of nothing
			}
			t.Run(tt.name+" "+form, func(t *testing.T) {
				got, err := stream(t, b, digestOf(tt.tar), Limits{})
				if err != nil {
					t.Fatal(err)
				}
				if len(got.Entries) != tt.entries {
					t.Errorf("%d entries, want %d", len(got.Entries), tt.entries)
				}
				got.check(t)
			})
		}
	}
}

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

// oldSparse is an old-GNU sparse file of size bytes that has 512 bytes of 'x' at offset at.
func oldSparse(name string, at, size int64) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x00%011o\x00", 512, 0))
	h[156] = 'S'
	copy(h[257:], "ustar  \x00")
	copy(h[386:], fmt.Sprintf("%011o\x00%011o\x00", at, 512))
	copy(h[386+24:], fmt.Sprintf("%011o\x00%011o\x00", size, 0))
	copy(h[483:], fmt.Sprintf("%011o\x00", size))
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return append(h, bytes.Repeat([]byte{'x'}, 512)...)
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

func TestStreamErrors(t *testing.T) {
	src := makeTar(t, reg("first", "abc"), reg("second", text(100_000, 1)))
	good := gz(t, src)
	bomb := gz(t, makeTar(t, reg("bomb", strings.Repeat("\x00", 10<<20))))
	padded := gz(t, append(bytes.Clone(src), make([]byte, 2<<20)...))
	huge := append(oldSparse("hole", 0, 1<<33-1), make([]byte, 1024)...)
	badOwner := makeTar(t, member{tar.Header{Typeflag: tar.TypeDir, Name: "owned", Uid: 1 << 32, Format: tar.FormatPAX}, ""})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	other := digestOf([]byte("other"))
	md5 := v1.Hash{Algorithm: "md5", Hex: "00"}
	for _, tt := range []struct {
		name   string
		r      io.Reader
		d      v1.Descriptor
		diffID v1.Hash
		ctx    context.Context
		spool  io.WriterAt
		lim    Limits
		is     error
		want   string
	}{
		{name: "digest", d: v1.Descriptor{Digest: other, Size: int64(len(good))}, is: blob.ErrDigestMismatch, want: other.Hex},
		{name: "diffID", d: descriptor(good), diffID: other, is: blob.ErrDigestMismatch, want: "the diffID is " + digestOf(src).String()},
		{name: "too short", r: bytes.NewReader(good), d: v1.Descriptor{Digest: digestOf(good), Size: int64(len(good)) + 1}, is: blob.ErrDigestMismatch},
		{name: "too long", d: v1.Descriptor{Digest: digestOf(good), Size: int64(len(good)) - 1}, is: blob.ErrDigestMismatch},
		{name: "cut", r: bytes.NewReader(good[:len(good)/2]), d: descriptor(good), is: io.ErrUnexpectedEOF, want: `entry 1 "second"`},
		{name: "source", r: &slow{bytes.NewReader(good[:5000]), errBoom}, d: descriptor(good), is: errBoom},
		{name: "garbage behind gzip", r: bytes.NewReader(append(bytes.Clone(good), "garbage"...)), d: descriptor(append(bytes.Clone(good), "garbage"...)), want: "gzip"},
		{name: "no tar", r: strings.NewReader(text(2000, 1)), d: descriptor([]byte(text(2000, 1))), want: "invalid tar header"},
		{name: "spool", d: descriptor(good), spool: failing{}, is: errBoom, want: "writing spool"},
		{name: "context", ctx: ctx, d: descriptor(good), is: context.Canceled},
		{name: "size of files", r: bytes.NewReader(bomb), d: descriptor(bomb), lim: Limits{MaxSize: 1 << 20}, want: `entry 0 "bomb": the layer exceeds a limit: with its 10485760 bytes`, is: ErrLimit},
		{name: "inflated size", r: bytes.NewReader(padded), d: descriptor(padded), lim: Limits{MaxSize: 1 << 20}, want: "the layer exceeds a limit: it inflates to more than 1048576 bytes", is: ErrLimit},
		{name: "entries", d: descriptor(good), lim: Limits{MaxEntries: 1}, want: `entry 1 "second": the layer exceeds a limit: more than 1 entries`, is: ErrLimit},
		{name: "hole", r: bytes.NewReader(huge), d: descriptor(huge), lim: Limits{MaxSize: 1 << 32}, want: `entry 0 "hole"`},
		{name: "owner", r: bytes.NewReader(badOwner), d: descriptor(badOwner), want: `entry 0 "owned": owner 4294967296:0`},
		{name: "algorithm", d: v1.Descriptor{Digest: md5}, want: "SHA-256"},
		{name: "algorithm of the diffID", d: descriptor(good), diffID: md5, want: "SHA-256"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.r == nil {
				tt.r = bytes.NewReader(good)
			}
			if tt.diffID == (v1.Hash{}) {
				tt.diffID = digestOf(src)
			}
			if tt.ctx == nil {
				tt.ctx = t.Context()
			}
			if tt.spool == nil {
				tt.spool = new(memory)
			}
			ix, err := Stream(tt.ctx, tt.r, tt.d, tt.diffID, tt.spool, new(memory), tt.lim)
			if err == nil || ix != nil {
				t.Fatalf("Stream gave %v, %v", ix, err)
			}
			if tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q", err)
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
