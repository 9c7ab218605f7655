package compress_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"testing"

	"github.com/pexfs/pex/lazy/tree"
)

// TestGolden pins the bytes of a small image with each algorithm. They depend on the versions of github.com/pierrec/lz4/v4 (4.1.33) and
// github.com/klauspost/compress (1.20.3): if only TestGolden fails with another version, the new bytes are as good; in every other case
// a change of them is a change of the format.
func TestGolden(t *testing.T) {
	all := []file{
		{"empty", nil}, {"one", []byte{1}}, {"inline", noise(3000, 1)}, {"text", text(50_000, 2)}, {"noise", noise(20_000, 3)}, {"zero", make([]byte, 300_000)},
		{"mixed", join(text(segment, 4), noise(segment, 5), text(4097, 6))}, {"same1", text(9000, 7)}, {"same2", text(9000, 7)},
	}
	f, size := plain(t, all, tree.Entry{Name: "link", Type: tree.Symlink, Linkname: "text"}, tree.Entry{Name: "dir", Type: tree.Dir, Xattrs: []tree.Xattr{{Name: "user.a", Value: []byte("b")}}},
		tree.Entry{Name: "dir/hard link", Type: tree.HardLink, Linkname: "text"})
	want := map[string]string{
		"lz4":           "241664 ab2c805848f0547cb7d14aa1b2c6538993dceaf557c1757b76c3af3c3591b6a0",
		"lz4 level 9":   "221184 d52b2b8cded418adcb9fee4238f2c7223fc5fb959916c709fc3d43b3d2a96b54",
		"zstd":          "212992 b04b27c3e6dfb887dd25bbc2497bda79e54b54b49ce4e64147fd7c48ee5a1988",
		"zstd level 22": "208896 2a18cfcc396cc7af87f9e036ff6699cffe42712b3e50afd004b918fa649fd2cf",
	}
	for _, a := range algorithms() {
		out, n := shrink(t, open(t, f, size), a.Options)
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(out, 0, n)); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%d %x", n, h.Sum(nil)); got != want[a.name] {
			t.Errorf("%s: size and SHA-256 %s, want %s", a.name, got, want[a.name])
		}
	}
}
