package compress_test

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/compress"
	"github.com/pexfs/pex/lazy/tree"
)

// randomTree gives files and others of all types, with contents that shrink more or less, some several times, and all that inodes have.
func randomTree(r *rand.Rand) ([]file, []tree.Entry) {
	special := []int{0, 1, 2, 4095, 4096, 4097, 8192, 12288, segment - 4096, segment - 1, segment, segment + 1, 2 * segment, 3*segment + 4096}
	content := func() []byte {
		n := special[r.IntN(len(special))]
		if r.IntN(2) == 0 {
			n = r.IntN(1 << r.IntN(20))
		}
		switch r.IntN(4) {
		case 0:
			return noise(n, r.Uint64())
		case 1:
			return make([]byte, n)
		case 2:
			b := noise(n, r.Uint64())
			for range 3 {
				from := r.IntN(n + 1)
				clear(b[from : from+r.IntN(n-from+1)])
			}
			return b
		}
		return text(n, r.Uint64())
	}
	dirs := []string{""}
	var files []file
	var others []tree.Entry
	in := func(format string, args ...any) string { return dirs[r.IntN(len(dirs))] + fmt.Sprintf(format, args...) }
	xattrs := func() (xs []tree.Xattr) {
		for k := range r.IntN(3) {
			xs = append(xs, tree.Xattr{Name: fmt.Sprintf("trusted.%d", k), Value: noise(r.IntN(1<<r.IntN(12)), r.Uint64())})
		}
		return xs
	}
	for i := range 150 {
		attr := tree.Entry{Mode: uint32(r.IntN(0o10000)), UID: r.Uint32N(1 << 31), GID: r.Uint32N(70_000), Mtime: tree.Time{Sec: r.Int64N(1 << 33), Nsec: r.Uint32N(1e9)}, Xattrs: xattrs()}
		switch r.IntN(8) {
		case 0:
			attr.Name, attr.Type = in("dir%d%s", i, strings.Repeat("d", r.IntN(240))), tree.Dir
			if len(attr.Name) < 2000 {
				dirs = append(dirs, attr.Name+"/")
			}
		case 1:
			attr.Name, attr.Type, attr.Linkname = in("link%d", i), tree.Symlink, strings.Repeat("l", 1+r.IntN(4095))
		case 2:
			attr.Name, attr.Type, attr.Major, attr.Minor = in("dev%d", i), tree.Char, r.Uint32N(1<<12), r.Uint32N(1<<20)
		case 3:
			if len(files) == 0 {
				continue
			}
			attr.Name, attr.Type, attr.Linkname = in("hard%d", i), tree.HardLink, files[r.IntN(len(files))].name
		case 4:
			if len(files) == 0 {
				continue
			}
			files = append(files, file{in("same%d", i), files[r.IntN(len(files))].b})
			continue
		default:
			files = append(files, file{in("file%d", i), content()})
			continue
		}
		others = append(others, attr)
	}
	return files, others
}

// TestTreesByKernel mounts random trees' images and what is made of them, and compares all that the kernel shows. What this project's
// reader shows of the same is compared too. Contents are read in pieces first, from the end on.
func TestTreesByKernel(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			files, others := randomTree(rand.New(rand.NewPCG(seed, 3)))
			f, size := plain(t, files, others...)
			im := open(t, f, size)
			want := list(t, mount(t, f.Name()))
			for _, a := range algorithms() {
				out, n := shrink(t, im, a.Options)
				if err := erofs.Check(out, n); err != nil {
					t.Errorf("%s: Check: %v", a.name, err)
				}
				if a.Algorithm == compress.LZ4 {
					fsck(t, out.Name())
				}
				dir := mount(t, out.Name())
				if d := cmp.Diff(want, list(t, dir)); d != "" {
					t.Errorf("%s by the kernel (-plain +compressed):\n%.3000s", a.name, d)
				}
				small := open(t, out, n)
				for _, f := range files {
					compareFile(t, f, filepath.Join(dir, f.name))
					compareContent(t, f, small)
				}
				compareInodes(t, im, small)
			}
		})
	}
}

// shown is what the kernel shows of a file, but for its content.
type shown struct {
	Mode, UID, GID, Nlink uint32
	Size                  int64 // but of directories
	Mtime                 unix.Timespec
	Rdev                  uint64
	Target, First         string // First of its names
	Xattrs                map[string]string
}

// list gives all of a mount by name, each looked up.
func list(t *testing.T, root string) map[string]shown {
	t.Helper()
	all := map[string]shown{}
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		rel := strings.TrimPrefix(name, root)
		if _, ok := first[st.Ino]; !ok {
			first[st.Ino] = rel
		}
		s := shown{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Nlink: uint32(st.Nlink), Mtime: st.Mtim, Rdev: st.Rdev, First: first[st.Ino], Xattrs: map[string]string{}}
		if !d.IsDir() {
			s.Size = st.Size
		}
		if d.Type() == fs.ModeSymlink {
			if s.Target, err = os.Readlink(name); err != nil {
				return err
			}
		}
		names := make([]byte, 64<<10)
		n, err := unix.Llistxattr(name, names)
		if err != nil {
			return err
		}
		for x := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
			if x == "" {
				continue
			}
			value := make([]byte, 64<<10)
			n, err := unix.Lgetxattr(name, x, value)
			if err != nil {
				return err
			}
			s.Xattrs[x] = string(value[:n])
		}
		all[rel] = s
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return all
}

// compareInodes walks two images side by side and compares all but places and contents.
func compareInodes(t *testing.T, a, b *erofs.Image) {
	t.Helper()
	type pair struct{ a, b uint64 }
	seen := map[uint64]uint64{}
	for todo := []pair{{a.Super().RootNid, b.Super().RootNid}}; len(todo) > 0; todo = todo[1:] {
		at := todo[0]
		if nid, ok := seen[at.a]; ok {
			if nid != at.b {
				t.Errorf("inode %d is %d and %d", at.a, nid, at.b)
			}
			continue
		}
		seen[at.a] = at.b
		type whole struct {
			Mode, UID, GID, Nlink, Rdev, Nsec uint32
			Size, Mtime                       int64
			Target                            string
			Xattrs                            []erofs.Xattr
			Names                             []string
		}
		var nids [2][]uint64
		read := func(im *erofs.Image, nid uint64, nids *[]uint64) (w whole) {
			in, err := im.Inode(nid)
			if err != nil {
				t.Fatal(err)
			}
			w = whole{Mode: in.Mode, UID: in.UID, GID: in.GID, Nlink: in.Nlink, Rdev: in.Rdev, Nsec: in.MtimeNsec, Size: in.Size, Mtime: in.Mtime}
			if w.Xattrs, err = im.Xattrs(in); err != nil {
				t.Fatal(err)
			}
			switch {
			case in.IsSymlink():
				target, err := im.Readlink(in)
				if err != nil {
					t.Fatal(err)
				}
				w.Target = string(target)
			case in.IsDir():
				err := im.ReadDir(in, 0, func(d erofs.Dirent) bool {
					w.Names = append(w.Names, fmt.Sprintf("%s %d", d.Name, d.Type))
					if name := string(d.Name); name != "." && name != ".." {
						*nids = append(*nids, d.Nid)
					}
					return true
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			return w
		}
		if d := cmp.Diff(read(a, at.a, &nids[0]), read(b, at.b, &nids[1])); d != "" {
			t.Fatalf("inode %d differs in the second image:\n%.2000s", at.a, d)
		}
		for i := range nids[0] {
			todo = append(todo, pair{nids[0][i], nids[1][i]})
		}
	}
	if len(seen) != int(a.Super().Inodes) {
		t.Errorf("%d inodes of %d", len(seen), a.Super().Inodes)
	}
}

// TestBeyond4GiB compresses a sparse content of more than 4 GiB, with something at its ends, on both sides of 2 and 4 GiB, and across two
// segments.
func TestBeyond4GiB(t *testing.T) {
	const size = 4<<30 + 3*segment + 12_345
	pieces := map[int64][]byte{0: text(100_000, 1), 2<<30 - 5000: noise(10_000, 2), 4<<30 - 70_000: text(200_000, 3), 3*segment - 1: {1, 2, 3}, size - 1: {9}}
	f, n := layOut(t, []tree.Entry{
		{Name: "big", Type: tree.Regular, Mode: 0o600, Size: size},
		{Name: "small", Type: tree.Regular, Mode: 0o600, Size: 3, Content: 1},
	}, func(w io.WriterAt, content int32, at int64) error {
		if content == 1 {
			_, err := w.WriteAt([]byte("abc"), at)
			return err
		}
		for off, b := range pieces {
			if _, err := w.WriteAt(b, at+off); err != nil {
				return err
			}
		}
		return nil
	})
	for _, a := range []compress.Algorithm{compress.LZ4, compress.Zstd} {
		t.Run(a.String(), func(t *testing.T) {
			out, size2 := shrink(t, open(t, f, n), compress.Options{Algorithm: a})
			if err := erofs.Check(out, size2); err != nil {
				t.Errorf("Check: %v", err)
			}
			im := open(t, out, size2)
			in := lookUp(t, im, "big")
			g, err := os.Open(filepath.Join(mount(t, out.Name()), "big"))
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			if st, err := g.Stat(); err != nil || st.Size() != size || in.Size != size {
				t.Fatalf("%d bytes and by the kernel %v, %v", in.Size, st, err)
			}
			compare := func(off, n int64) {
				t.Helper()
				want := make([]byte, n)
				for at, b := range pieces {
					if from, to := max(off, at), min(off+n, at+int64(len(b))); from < to {
						copy(want[from-off:], b[from-at:to-at])
					}
				}
				got := make([]byte, n)
				if _, err := im.ReadFileAt(in, got, off); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes at %d: equal: %t, %v", n, off, bytes.Equal(got, want), err)
				}
				if _, err := g.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes at %d by the kernel: equal: %t, %v", n, off, bytes.Equal(got, want), err)
				}
			}
			for at, b := range pieces {
				from := max(at-9000, 0)
				compare(from, min(at+int64(len(b))+9000, size)-from)
			}
			r := rand.New(rand.NewPCG(1, 1))
			for range 50 {
				n := 1 + r.Int64N(300_000)
				compare(r.Int64N(size-n), n)
			}
		})
	}
}
