package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pexfs/pex/lazy/blob"
)

// piece is a chunk of text within a member.
type piece struct {
	inner int64
	text  string
}

// membersOf makes a blob of members, each with a byte of something else before it, and the chunks in it.
func membersOf(t testing.TB, f Format, members map[string][]piece, order ...string) (b []byte, chunks []Chunk) {
	t.Helper()
	for _, text := range order {
		b = append(b, '#')
		start := int64(len(b))
		switch f {
		case Plain:
			b = append(b, text...)
		case Gzip:
			b = append(b, gz(t, []byte(text))...)
		case Zstd:
			b = append(b, zst(t, []byte(text))...)
		}
		for _, p := range members[text] {
			chunks = append(chunks, Chunk{Size: int64(len(p.text)), Digest: sha256.Sum256([]byte(p.text)), Start: start, End: int64(len(b)), Inner: p.inner})
		}
	}
	return b, chunks
}

func TestReadChunks(t *testing.T) {
	const first, second, third = "one two three", "unwanted", "four five"
	for _, f := range []Format{Plain, Gzip, Zstd} {
		b, all := membersOf(t, f, map[string][]piece{
			first:  {{0, "one"}, {0, "one"}, {4, "two"}, {8, "three"}},
			second: {},
			third:  {{0, "four"}, {5, "five"}},
		}, first, second, third)
		for _, tt := range []struct {
			name   string
			chunks []Chunk
			want   string
		}{
			{"all", all, "one one two three four five"},
			{"none", nil, ""},
			{"some of each member", []Chunk{all[2], all[5]}, "two five"},
			{"last", all[5:], "five"},
			{"within the first", all[1:3], "one two"},
		} {
			for _, base := range []string{"from the start", "from the first member"} {
				t.Run(fmt.Sprint(f, tt.name, base), func(t *testing.T) {
					off := int64(0)
					if base != "from the start" && len(tt.chunks) > 0 {
						off = tt.chunks[0].Start
					}
					var got []string
					err := ReadChunks(t.Context(), f, &slow{r: bytes.NewReader(b[off:])}, off, tt.chunks, func(i int, p []byte) error {
						if i != len(got) {
							t.Errorf("chunk %d after %d", i, len(got))
						}
						got = append(got, string(p))
						return nil
					})
					if err != nil {
						t.Fatal(err)
					}
					if d := cmp.Diff(tt.want, strings.Join(got, " ")); d != "" {
						t.Error(d)
					}
				})
			}
		}
	}
}

// TestChunkReaderAgain uses one reader for all formats, and after failures.
func TestChunkReaderAgain(t *testing.T) {
	var c ChunkReader
	defer c.Close()
	for round := range 3 {
		for _, f := range []Format{Gzip, Zstd, Plain, Zstd, Gzip} {
			body := text(10_000*(round+1), uint64(round))
			b, chunks := membersOf(t, f, map[string][]piece{body: {{0, body[:5000]}, {5000, body[5000:]}}}, body)
			for _, cut := range []int{0, 1, len(b) / 2} {
				var got string
				err := c.Read(t.Context(), f, bytes.NewReader(b[1:len(b)-cut]), 1, chunks, func(_ int, p []byte) error {
					got += string(p)
					return nil
				})
				if cut == 0 && (err != nil || got != body) || cut > 1 && err == nil {
					t.Fatalf("round %d, format %d, cut %d: %d bytes, %v", round, f, cut, len(got), err)
				}
				if !strings.HasPrefix(body, got) {
					t.Fatalf("other bytes")
				}
			}
		}
	}
}

func TestReadChunksErrors(t *testing.T) {
	body := text(5000, 1)
	b, chunks := membersOf(t, Gzip, map[string][]piece{body: {{0, body[:100]}, {100, body[100:]}}, "x": {{0, "x"}}}, body, "x")
	change := func(i int, f func(*Chunk)) []Chunk {
		c := append([]Chunk(nil), chunks...)
		f(&c[i])
		return c
	}
	damaged := bytes.Clone(b)
	damaged[chunks[0].End-20] ^= 1
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(errBoom)
	for _, tt := range []struct {
		name   string
		f      Format
		b      []byte
		ctx    context.Context
		chunks []Chunk
		emit   error
		is     error
		want   string
	}{
		{name: "digest", chunks: change(0, func(c *Chunk) { c.Digest[0] ^= 1 }), is: blob.ErrDigestMismatch, want: "chunk of 100 bytes at offset 1, 0 within: got sha256:"},
		{name: "place in the member", chunks: change(0, func(c *Chunk) { c.Inner++ }), is: blob.ErrDigestMismatch},
		{name: "plain bytes", f: Plain, chunks: chunks, is: blob.ErrDigestMismatch},
		{name: "damaged", b: damaged, chunks: chunks, is: blob.ErrDigestMismatch, want: "chunk"},
		{name: "another format", f: Zstd, chunks: chunks, is: blob.ErrDigestMismatch, want: "reading chunk at offset 1"},
		{name: "beyond the member", chunks: change(1, func(c *Chunk) { c.Size++ }), is: io.ErrUnexpectedEOF, want: "reading chunk at offset 1"},
		{name: "far beyond the member", chunks: change(1, func(c *Chunk) { c.Inner = maxMember }), is: io.ErrUnexpectedEOF},
		{name: "the blob ends", b: b[:10], chunks: chunks, is: io.ErrUnexpectedEOF},
		{name: "the blob ends before", b: b[:0], chunks: chunks, is: io.ErrUnexpectedEOF},
		{name: "the blob ends between", b: b[:chunks[0].End-4], chunks: []Chunk{chunks[0], chunks[2]}, is: io.ErrUnexpectedEOF},
		{name: "backwards", chunks: []Chunk{chunks[2], chunks[0]}, want: "does not lie behind"},
		{name: "backwards in a member", chunks: []Chunk{chunks[1], chunks[0]}, want: "does not lie behind"},
		{name: "empty member", chunks: change(0, func(c *Chunk) { c.End = c.Start }), want: "member"},
		{name: "no bytes", chunks: change(0, func(c *Chunk) { c.Size = 0 }), want: "0 bytes"},
		{name: "too many bytes", chunks: change(0, func(c *Chunk) { c.Size = maxChunk + 1 }), want: "67108865 bytes"},
		{name: "emit", chunks: chunks, emit: io.ErrClosedPipe, is: io.ErrClosedPipe},
		{name: "context", ctx: ended, chunks: chunks, is: errBoom},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.b == nil {
				tt.b = b
			}
			if tt.f == 0 && tt.name != "plain bytes" {
				tt.f = Gzip
			}
			if tt.ctx == nil {
				tt.ctx = t.Context()
			}
			err := ReadChunks(tt.ctx, tt.f, bytes.NewReader(tt.b), 0, tt.chunks, func(i int, p []byte) error {
				if sha256.Sum256(p) != tt.chunks[i].Digest {
					t.Error("wrong bytes were given out")
				}
				return tt.emit
			})
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v", err)
			}
			if strings.HasPrefix(tt.name, "the blob ends") && errors.Is(err, blob.ErrDigestMismatch) {
				t.Errorf("a blob that can't be read on is taken for damaged: %v", err)
			}
		})
	}
}

func TestReadChunksFlippedBits(t *testing.T) {
	body := text(300, 1)
	for _, f := range []Format{Plain, Gzip, Zstd} {
		b, chunks := membersOf(t, f, map[string][]piece{body: {{0, body[:100]}, {200, body[200:]}}}, body)
		for i := range len(b) * 8 {
			bad := bytes.Clone(b)
			bad[i/8] ^= 1 << (i % 8)
			err := ReadChunks(t.Context(), f, bytes.NewReader(bad), 0, chunks, func(i int, p []byte) error {
				if sha256.Sum256(p) != chunks[i].Digest {
					t.Error("wrong bytes were given out")
				}
				return nil
			})
			if f == Plain && i >= 8 && i/8 < 101 && !errors.Is(err, blob.ErrDigestMismatch) {
				t.Errorf("bit %d: error %v", i, err)
			}
		}
	}
}

func BenchmarkReadChunks(b *testing.B) {
	for _, f := range []struct {
		name   string
		format Format
	}{{"gzip", Gzip}, {"zstd", Zstd}} {
		for _, size := range []int{4 << 10, 64 << 10, 4 << 20} {
			members := map[string][]piece{}
			var order []string
			for i := range (8 << 20) / size {
				s := text(size, uint64(i))
				members[s] = []piece{{0, s}}
				order = append(order, s)
			}
			data, chunks := membersOf(b, f.format, members, order...)
			b.Run(fmt.Sprint(f.name, "/", size), func(b *testing.B) {
				b.SetBytes(8 << 20)
				var c ChunkReader
				defer c.Close()
				for b.Loop() {
					if err := c.Read(b.Context(), f.format, bytes.NewReader(data), 0, chunks, func(int, []byte) error { return nil }); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
