package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pexfs/pex/cmd/internal/convert"
	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/store"
)

// lazily gives the lab's image tables of contents, so that it isn't complete when it has been opened.
func (l *lab) lazily(t *testing.T) {
	t.Helper()
	to := l.image + "-estargz"
	if _, err := convert.Convert(t.Context(), l.image, to, convert.Options{}); err != nil {
		t.Fatal(err)
	}
	l.image = to
}

// copied is a lab with a copy of the cache, whose daemon doesn't run.
func (l *lab) copied(t *testing.T) *lab {
	t.Helper()
	c := *l
	c.cache = filepath.Join(t.TempDir(), "cache")
	if err := os.CopyFS(c.cache, os.DirFS(l.cache)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := c.command("daemon", "stop").CombinedOutput(); err != nil {
			t.Errorf("stopping the daemon: %v\n%s", err, out)
		}
	})
	return &c
}

// imageDir is the folder of the one image in the cache.
func (l *lab) imageDir(t *testing.T) string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(l.cache, "images", "*"))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("images %q, %v, want one", dirs, err)
	}
	return dirs[0]
}

// blockOf is the first block of a file's content in the image.
func (l *lab) blockOf(t *testing.T, path string) int64 {
	t.Helper()
	f, err := os.Open(filepath.Join(l.imageDir(t), "image.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	im, err := erofs.Open(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	in, err := im.Inode(im.Super().RootNid)
	for name := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		var nid uint64
		if err == nil {
			nid, err = im.Lookup(in, name)
		}
		if err == nil {
			in, err = im.Inode(nid)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	off, err := im.DataOff(in)
	if err != nil {
		t.Fatal(err)
	}
	return off / store.BlockSize
}

// flip changes a bit of one of the image's files.
func (l *lab) flip(t *testing.T, name string, off int64) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(l.imageDir(t), name), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], off)
	if err == nil {
		b[0] ^= 1
		_, err = f.WriteAt(b[:], off)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// changeRoot records another Merkle root.
func (l *lab) changeRoot(t *testing.T) {
	t.Helper()
	name := filepath.Join(l.imageDir(t), "info.json")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var info map[string]any
	if err := json.Unmarshal(text, &info); err != nil {
		t.Fatal(err)
	}
	info["root"] = strings.Repeat("5a", sha256.Size)
	if text, err = json.Marshal(info); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestVerity(t *testing.T) {
	l := newLab(t)
	l.lazily(t)
	r := l.run(t, "", "run", "--no-fill", "--verity", l.image)
	if r.status != 125 || !strings.Contains(r.stderr, "with --verity: the image is not complete, and --no-fill keeps it so\npex: hint: ") {
		t.Errorf("an image that is to stay lazy: %+v", r)
	}

	data := []string{"/data/huge", "/data/one", "/data/two"}
	// sums is what the guest is to say of them; some can't be read.
	sums := func(unreadable string) string {
		var b strings.Builder
		for i, name := range data {
			if name == unreadable {
				fmt.Fprintln(&b, name, "input/output error")
				continue
			}
			fmt.Fprintf(&b, "%s %x\n", name, sha256.Sum256(fileContent(name, []int64{hugeSize, smallSize, smallSize}[i])))
		}
		return b.String()
	}
	sum := append([]string{"run", "-v", "--verity", l.image, "sum"}, data...)
	r = l.run(t, "", sum...)
	if r.status != 0 || r.stdout != sums("") {
		t.Errorf("the image as it is: %+v", r)
	}
	for _, want := range []string{"pex: completing " + l.image + ": --verity needs all of it\n", ", root verity\n"} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("standard error %q, want %q", r.stderr, want)
		}
	}

	const damaged = ": image is damaged: "
	tests := []struct {
		name   string
		damage func(t *testing.T, l *lab)
		args   []string
		want   result // stderr: a part of it
	}{
		{"a bit of a file", func(t *testing.T, l *lab) {
			l.flip(t, "image.erofs", l.blockOf(t, "/data/one")*store.BlockSize+4200)
		}, sum, result{0, sums("/data/one"), " of the image is damaged, and the machine refused it: `pexfs fsck` mends it\n"}},
		{"a bit of the tree", func(t *testing.T, l *lab) {
			// A block of leaves that are all of the huge file's blocks: the last ones of the Merkle file.
			leaves := (l.blockOf(t, "/data/huge") + hugeSize/store.BlockSize/2) / 128
			st, err := os.Stat(filepath.Join(l.imageDir(t), "image.erofs"))
			if err != nil {
				t.Fatal(err)
			}
			tree, err := os.Stat(filepath.Join(l.imageDir(t), "merkle"))
			if err != nil {
				t.Fatal(err)
			}
			all := (st.Size()/store.BlockSize + 127) / 128
			l.flip(t, "merkle", tree.Size()+(leaves-all)*store.BlockSize+99)
		}, sum, result{0, sums("/data/huge"), " of the image's Merkle tree is damaged, and the machine refused it: `pexfs fsck` mends it\n"}},
		{"another root", func(t *testing.T, l *lab) { l.changeRoot(t) }, sum,
			result{125, "", "guest failed: the image or its tree of hashes is not what the Merkle root 5a5a5a5a5a5a5a5a… stands for: " +
				"mounting /dev/dm-0 on /lower (erofs): input/output error\npex: hint: `pexfs fsck " + l.image + "` "}},
		{"the tree's superblock", func(t *testing.T, l *lab) { l.flip(t, "merkle", 100) }, sum, result{125, "", damaged + "merkle: block 0 "}},
		// Without --verity the image's first block is always looked at.
		{"another root, for pmem", func(t *testing.T, l *lab) { l.changeRoot(t) }, []string{"run", "--root", "pmem", l.image},
			result{125, "", damaged + "merkle: block 1 at offset 4096 is not what was sealed\npex: hint: `pexfs fsck " + l.image + "` "}},
		{"the first block, for pmem", func(t *testing.T, l *lab) { l.flip(t, "image.erofs", 0) }, []string{"run", "--root", "pmem", l.image},
			result{125, "", damaged + "image.erofs: block 0 at offset 0 is not what was sealed\npex: hint: "}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := l.copied(t)
			tt.damage(t, c)
			r := c.run(t, "", tt.args...)
			if r.status != tt.want.status || r.stdout != tt.want.stdout || !strings.Contains(r.stderr, tt.want.stderr) {
				t.Errorf("got status %d, output %q, standard error %q\nwant %+v", r.status, r.stdout, r.stderr, tt.want)
			}
			if n := strings.Count(r.stderr, "pex: error: "); n > 1 {
				t.Errorf("%d errors", n)
			}
		})
	}
}
