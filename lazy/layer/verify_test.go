package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/blob/blobtest"
	"github.com/pexfs/pex/lazy/tree"
)

// TestVerifyLosses has what writers of TOCs lose, which is no difference.
func TestVerifyLosses(t *testing.T) {
	timed := func(at time.Time) member {
		m := reg("a", "a")
		m.ModTime, m.Format = at, tar.FormatPAX
		return m
	}
	records := func(kv ...string) member {
		m := reg("a", "a")
		m.PAXRecords = map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m.PAXRecords[kv[i]] = kv[i+1]
		}
		return m
	}
	for _, tt := range []struct {
		name string
		in   member
	}{
		{"rounded down", timed(time.Unix(1e9, 499_999_999))},
		{"rounded up", timed(time.Unix(1e9, 500_000_000))},
		{"rounded before 1970", timed(time.Unix(-7, 500_000_000))},
		{"within the first second of 1970", timed(time.Unix(0, 900_000_000))},
		{"the year 1", timed(time.Time{})},
		{"libarchive's attributes", records("LIBARCHIVE.xattr.user.a", "AP8", "SCHILY.xattr.user.b", "b")},
		{"names not cleaned", reg("./b//../a", "a")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, f := range tocForms() {
				b, d, diffID := f.make(t, makeTar(t, tt.in))
				ix, err := ReadTOC(t.Context(), blobtest.Bytes(b), d, Limits{})
				if err != nil {
					t.Fatal(err)
				}
				if err := Verify(bytes.NewReader(b), d, diffID, ix, Limits{}); err != nil {
					t.Errorf("%s: %v", f.name, err)
				}
			}
		})
	}
}

// TestVerifyDiffers has TOCs that are what the manifest vouches for, but not what the tar says.
func TestVerifyDiffers(t *testing.T) {
	at := func(ix *Index, name string) *tree.Entry { return &ix.Entries[indexOf(ix.Entries, name)] }
	const differs = "the table of contents differs from the tar: "
	b, d, diffID := eStargz(estargz.WithChunkSize(10_000))(t, makeTar(t, sample()...))
	for _, tt := range []struct {
		name string
		lie  func(*Index)
		want string
	}{
		{"mode", func(ix *Index) { at(ix, "bin/su").Mode = 0o777 }, `entry 2 "bin/su": mode 04755 in the tar, 0777 in the table of contents`},
		{"no mode", func(ix *Index) { at(ix, "one block").Mode = 0 }, `entry 7 "one block": mode 0644 in the tar, 0000 in the table of contents`},
		{"type", func(ix *Index) { at(ix, "bin/empty").Type = tree.Fifo }, `entry 4 "bin/empty": type reg in the tar, fifo in the table of contents`},
		{"name", func(ix *Index) { at(ix, "small").Name = "smaller" }, `entry 8 "small": name "small" in the tar, "smaller" in the table of contents`},
		{"uid", func(ix *Index) { at(ix, "tty").UID = 0 }, `entry 14 "tty": uid 7 in the tar, 0 in the table of contents`},
		{"gid", func(ix *Index) { at(ix, "tty").GID = 5 }, `entry 14 "tty": gid 4194304 in the tar, 5 in the table of contents`},
		{"size", func(ix *Index) { at(ix, "small").Size = 2 }, `entry 8 "small": size 3 in the tar, 2 in the table of contents`},
		{"no content", func(ix *Index) { at(ix, "small").Size = 0 }, `entry 8 "small": size 3 in the tar, 0 in the table of contents`},
		{"symlink", func(ix *Index) { at(ix, "link").Linkname = "..//big" }, `entry 17 "link": target "../big" in the tar, "..//big" in the table of contents`},
		{"hard link", func(ix *Index) { at(ix, "hard").Linkname = "bin/su" }, `entry 18 "hard": target "elsewhere" in the tar, "bin/su" in the table of contents`},
		{"hard link written otherwise", func(ix *Index) { at(ix, "hard").Linkname = "/./elsewhere" }, ""},
		{"major", func(ix *Index) { at(ix, "sda").Major = 8 }, `entry 15 "sda": device 259:70000 in the tar, 8:70000 in the table of contents`},
		{"minor", func(ix *Index) { at(ix, "sda").Minor = 1 }, `entry 15 "sda": device 259:70000 in the tar, 259:1 in the table of contents`},
		{"time", func(ix *Index) { at(ix, "old").Mtime.Sec++ }, `entry 3 "old": time -5.000000000 in the tar, -4.000000000 in the table of contents`},
		{"nanoseconds", func(ix *Index) { at(ix, "old").Mtime.Nsec++ }, `entry 3 "old": time -5.000000000 in the tar, -5.000000001 in the table of contents`},
		{"no time", func(ix *Index) { at(ix, "old").Mtime = tree.Time{} }, `entry 3 "old": time -5.000000000 in the tar, 0.000000000 in the table of contents`},
		{"attribute gone", func(ix *Index) { at(ix, "bin/su").Xattrs = at(ix, "bin/su").Xattrs[1:] }, `entry 2 "bin/su": attribute "security.capability" is in the tar, not in the table of contents`},
		{"attribute changed", func(ix *Index) { at(ix, "bin/su").Xattrs[2].Value = []byte("3") }, `entry 2 "bin/su": attribute "user.empty" " " in the tar, "3" in the table of contents`},
		{"attribute added", func(ix *Index) {
			at(ix, "old").Xattrs = []tree.Xattr{{Name: "security.capability", Value: []byte("x")}}
		}, `entry 3 "old": attribute "security.capability" is in the table of contents, not in the tar`},
		{"a whiteout that the tar has not", func(ix *Index) {
			ix.Entries = slices.Insert(ix.Entries, 1, tree.Entry{Name: "etc/.wh.shadow", Type: tree.Regular})
		}, `entry 1 "./bin/": name "./bin/" in the tar, "etc/.wh.shadow" in the table of contents`},
		{"missing", func(ix *Index) { ix.Entries = slices.Delete(ix.Entries, 8, 9) }, `entry 8 "small": name "small" in the tar, "same as small" in the table of contents`},
		{"doubled", func(ix *Index) { ix.Entries = slices.Insert(ix.Entries, 9, ix.Entries[8]) }, `entry 9 "same as small": name "same as small" in the tar, "small" in the table of contents`},
		{"swapped", func(ix *Index) { ix.Entries[8], ix.Entries[9] = ix.Entries[9], ix.Entries[8] }, `entry 8 "small": name "small" in the tar, "same as small" in the table of contents`},
		{"last missing", func(ix *Index) { ix.Entries = ix.Entries[:19] }, `entry 19 "last": is in the tar, not in the table of contents`},
		{"one behind the last", func(ix *Index) { ix.Entries = append(ix.Entries, tree.Entry{Name: "x"}) }, `entry 20 "x": is in the table of contents, not in the tar`},
		{"empty", func(ix *Index) { ix.Entries = nil }, `entry 0 "./": is in the tar, not in the table of contents`},
		{"content of another", func(ix *Index) { at(ix, "one block").Content = at(ix, "big").Content }, `entry 7 "one block": 4096 bytes in the tar, chunks of 300000 bytes in the table of contents`},
		{"digest of a chunk", func(ix *Index) {
			ix.Chunks[ix.Contents[at(ix, "big").Content].FirstChunk+2].Digest[0] ^= 1
		}, `entry 10 "big": chunk 2, 10000 bytes from 20000 on, sha256:`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ix, err := ReadTOC(t.Context(), blobtest.Bytes(b), d, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			tt.lie(ix)
			err = Verify(bytes.NewReader(b), d, diffID, ix, Limits{})
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, ErrTOCDiffers) || !strings.HasPrefix(err.Error(), differs+tt.want) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// TestVerifyDamaged has TOCs that differ from what was read, but what was read isn't the layer.
func TestVerifyDamaged(t *testing.T) {
	b, d, diffID := eStargz()(t, makeTar(t, sample()...))
	ix, err := ReadTOC(t.Context(), blobtest.Bytes(b), d, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	ix.Entries[0].Mode ^= 1
	other, _, _ := eStargz()(t, makeTar(t, reg("other", text(300_000, 1))))
	for _, tt := range []struct {
		name   string
		b      []byte
		diffID v1.Hash
		is     error
	}{
		{"another diffID", b, digestOf(nil), blob.ErrDigestMismatch},
		{"another blob", other, diffID, blob.ErrDigestMismatch},
		{"cut", b[:len(b)/2], diffID, io.ErrUnexpectedEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := Verify(bytes.NewReader(tt.b), d, tt.diffID, ix, Limits{})
			if !errors.Is(err, tt.is) || errors.Is(err, ErrTOCDiffers) {
				t.Errorf("error %v", err)
			}
		})
	}
	if err := Verify(bytes.NewReader(b), d, diffID, ix, Limits{MaxEntries: 3}); err == nil || errors.Is(err, ErrTOCDiffers) {
		t.Errorf("limited: error %v", err)
	}
	s, err := stream(t, b, diffID, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(bytes.NewReader(b), d, diffID, s.Index, Limits{}); err == nil || errors.Is(err, ErrTOCDiffers) {
		t.Errorf("index of a tar: error %v", err)
	}
}
