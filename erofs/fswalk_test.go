package erofs_test

import (
	"errors"
	"io"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/erofs/disk"
	"github.com/pexfs/pex/lazy/tree"
)

// TestFSHostile walks images in which directories are where they may not be.
func TestFSHostile(t *testing.T) {
	entries := []tree.Entry{dir("d/e/f", 0o755), dir("d/g", 0o755), reg("d/h", 10, 1), reg("top", 10, 2)}
	for _, c := range []struct {
		name   string
		damage func(p *patient)
		want   string
	}{
		{"a directory in itself", func(p *patient) {
			d := p.nid("d")
			dirent(p.dirBlock("d"), 2, func(e *disk.Dirent) { e.Nid = d })
		}, "which is not its parent"},
		{"the root below itself", func(p *patient) {
			dirent(p.dirBlock("d"), 2, func(e *disk.Dirent) { e.Nid = 1 })
			d := p.nid("d")
			dirent(p.dirBlock(), 1, func(e *disk.Dirent) { e.Nid = d })
		}, "which is not its parent"},
		{"a directory in two", func(p *patient) {
			g := p.nid("d", "g")
			dirent(p.dirBlock("d", "e"), 2, func(e *disk.Dirent) { e.Nid = g })
		}, "which is not its parent"},
		{"a directory twice in one", func(p *patient) {
			g := p.nid("d", "g")
			dirent(p.dirBlock("d"), 2, func(e *disk.Dirent) { e.Nid = g })
		}, "which has another name"},
		{"a directory twice, said to be of unknown type", func(p *patient) {
			g := p.nid("d", "g")
			b := p.dirBlock("d")
			dirent(b, 2, func(e *disk.Dirent) { e.Nid, e.Type = g, 0 })
			dirent(b, 3, func(e *disk.Dirent) { e.Type = 200 })
		}, "which has another name"},
		{"no parent", func(p *patient) {
			copy(p.dirBlock("d", "g")[2*disk.DirentSize:], ".,,")
		}, "which is not its parent"},
		{"a directory that isn't one", func(p *patient) {
			h := p.nid("d", "h")
			dirent(p.dirBlock("d"), 2, func(e *disk.Dirent) { e.Nid = h })
		}, "its directory tells another type"},
		{"a file that is a directory", func(p *patient) {
			dirent(p.dirBlock("d"), 3, func(e *disk.Dirent) { e.Type = disk.TypeRegular })
		}, "its directory tells another type"},
		{"names out of order", func(p *patient) {
			b := p.dirBlock("d")
			copy(b[5*disk.DirentSize:], "...gfh") // "." and ".." and three names
		}, `"f" follows "g"`},
		{"an inode that isn't there", func(p *patient) {
			dirent(p.dirBlock("d"), 4, func(e *disk.Dirent) { e.Nid = 1 << 60 })
		}, "nid 1152921504606846976"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newFixture(t, entries).sparse(t)
			p := &patient{sparse: s, t: t, im: s.open(t)}
			c.damage(p)
			errs := errors.Join(walkFS(t, p.im, 1000)...)
			if !errors.Is(errs, erofs.ErrInvalid) || !strings.Contains(errs.Error(), c.want) {
				t.Errorf("errors %v; want one that says %q", errs, c.want)
			}
		})
	}
}

// walkFS walks an image whatever errors there are, gives the errors, and sees to it that the walk ends: that it enters no
// directory twice. Of each file it reads so many bytes.
func walkFS(t *testing.T, im *erofs.Image, bytes int64) (errs []error) {
	t.Helper()
	f := im.FS()
	seen := map[uint64]string{}
	root, err := fs.ReadDir(f, ".")
	if err != nil && len(root) == 0 {
		return []error{err}
	}
	_ = fs.WalkDir(f, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil { // that of a listing comes beside the names before it
			errs = append(errs, err)
			return nil
		}
		info, err := d.Info()
		if err != nil {
			errs = append(errs, err)
			return nil
		}
		if d.IsDir() {
			nid := info.Sys().(*erofs.Inode).Nid
			if _, err := f.Stat(name); err != nil {
				errs = append(errs, err)
				return fs.SkipDir
			}
			if at, ok := seen[nid]; ok {
				t.Fatalf("directory %d is %q and %q", nid, at, name)
			}
			seen[nid] = name
			return nil
		}
		if !info.Mode().IsRegular() || !fs.ValidPath(name) {
			return nil
		}
		file, err := f.Open(name)
		if err == nil {
			_, err = io.Copy(io.Discard, io.LimitReader(file, bytes))
		}
		if err != nil {
			errs = append(errs, err)
		}
		return nil
	})
	return errs
}

// FuzzFS walks images of any bytes, and reads their files.
func FuzzFS(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, super, meta []byte) {
		s := hostile(super, meta)
		im, err := erofs.Open(s, s.size)
		if err != nil {
			return
		}
		_ = walkFS(t, im, 10_000) // an image may be wrong in part
	})
}

// TestFSDepth goes as deep as names may, and below.
func TestFSDepth(t *testing.T) {
	// one layer's names have less than 4,096 bytes; trees in trees go further
	tr := buildTree(t, []tree.Entry{dir(strings.Repeat("d/", 2000), 0o755), link("l", strings.Repeat("d/", 2000))})
	for _, depth := range []int{2000, 1000} {
		var err error
		if tr, err = tree.Pack([]tree.Part{{Prefix: strings.Repeat("d/", depth-1) + "d", Tree: tr}}); err != nil {
			t.Fatal(err)
		}
	}
	f := fixtureOf(t, tr).open(t).FS()
	if _, err := f.Stat(strings.Repeat("d/", 4095) + "d"); err != nil {
		t.Errorf("4,096 directories: %v", err)
	}
	for _, name := range []string{strings.Repeat("d/", 4096) + "d", strings.Repeat("d/", 3000) + "l"} {
		if _, err := f.Stat(name); !errors.Is(err, syscall.ENAMETOOLONG) {
			t.Errorf("more than 4,096 directories: %v", err)
		}
	}
}
