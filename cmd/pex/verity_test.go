package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// size is the image's size in bytes.
func (l *lab) size(t *testing.T) int64 {
	t.Helper()
	st, err := os.Stat(filepath.Join(l.imageDir(t), "image.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// leavesOf is where the Merkle file has the block of leaves that an image's block is hashed in.
func (l *lab) leavesOf(t *testing.T, block int64) int64 {
	t.Helper()
	const hashesPer = store.BlockSize / sha256.Size
	tree, err := os.Stat(filepath.Join(l.imageDir(t), "merkle"))
	if err != nil {
		t.Fatal(err)
	}
	all := (l.size(t)/store.BlockSize + hashesPer - 1) / hashesPer // they end the file
	return tree.Size() - (all-block/hashesPer)*store.BlockSize
}

// info is what the cache says about the image.
func (l *lab) info(t *testing.T) (info map[string]any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(l.imageDir(t), "info.json"))
	if err == nil {
		err = json.Unmarshal(text, &info)
	}
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// changeRoot records another Merkle root.
func (l *lab) changeRoot(t *testing.T) {
	t.Helper()
	info := l.info(t)
	info["root"] = strings.Repeat("5a", sha256.Size)
	text, err := json.Marshal(info)
	if err == nil {
		err = os.WriteFile(filepath.Join(l.imageDir(t), "info.json"), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestVerity(t *testing.T) {
	l := newLab(t)
	l.build(t, "pexfs", "../pexfs")
	l.lazily(t)
	r := l.run(t, "", "run", "--no-fill", "--verity", l.image)
	if r.status != 125 || !strings.Contains(r.stderr, "with --verity: the image is not complete, and --no-fill keeps it so\npex: hint: ") {
		t.Errorf("an image that is to stay lazy: %+v", r)
	}

	data := []string{"/data/huge", "/data/one", "/data/two"}
	// sums is what the guest is to say of them; some can't be read.
	sums := func(unreadable ...string) string {
		var b strings.Builder
		for i, name := range data {
			if slices.Contains(unreadable, name) {
				fmt.Fprintln(&b, name, "input/output error")
				continue
			}
			fmt.Fprintf(&b, "%s %x\n", name, sha256.Sum256(fileContent(name, []int64{hugeSize, smallSize, smallSize}[i])))
		}
		return b.String()
	}
	sum := append([]string{"run", "-v", "--verity", l.image, "sum"}, data...)
	r = l.run(t, "", sum...)
	if r.status != 0 || r.stdout != sums() {
		t.Errorf("the image as it is: %+v", r)
	}
	for _, want := range []string{"pex: completing " + l.image + ": --verity needs all of it\n", ", root verity\n"} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("standard error %q, want %q", r.stderr, want)
		}
	}

	const damaged, mended = ": image is damaged: ", ": all of the image is checked, and what is damaged is fetched again\n"
	refused := func(of string) string {
		return " of the " + of + " is damaged, and the machine refused it: `pexfs fsck " + l.image + "` mends it\n"
	}
	noRoot := func(root string) string {
		return "guest failed: the image or its tree of hashes is not what the Merkle root " + root + "… stands for: " +
			"mounting /dev/dm-0 on /lower (erofs): input/output error\npex: hint: `pexfs fsck " + l.image + "` "
	}
	tests := []struct {
		name   string
		damage func(t *testing.T, l *lab)
		args   []string
		want   result // without stderr
		stderr []string
	}{
		{"bits of a file and of the tree", func(t *testing.T, l *lab) {
			l.flip(t, "image.erofs", l.blockOf(t, "/data/one")*store.BlockSize+4200)
			l.flip(t, "merkle", l.leavesOf(t, l.blockOf(t, "/data/huge")+hugeSize/store.BlockSize/2)+99)
		}, sum, result{status: 0, stdout: sums("/data/huge", "/data/one")}, []string{refused("image"), refused("image's Merkle tree")}},
		{"a bit of a directory", func(t *testing.T, l *lab) {
			b, err := os.ReadFile(filepath.Join(l.imageDir(t), "image.erofs"))
			if err != nil {
				t.Fatal(err)
			}
			l.flip(t, "image.erofs", int64(bytes.Index(b, []byte("hugeonetwo")))) // names that follow each other
		}, sum, result{status: 125}, []string{refused("image"), noRoot(l.info(t)["root"].(string)[:16])}},
		{"another root", func(t *testing.T, l *lab) { l.changeRoot(t) }, sum,
			result{status: 125}, []string{refused("image's Merkle tree"), noRoot("5a5a5a5a5a5a5a5a")}},
		// What is found before the machine starts is mended. Without --verity some blocks are looked at.
		{"the image's superblock", func(t *testing.T, l *lab) { l.flip(t, "image.erofs", 1030) }, sum,
			result{status: 0, stdout: sums()}, []string{damaged + "image.erofs: block 0 ", mended}},
		{"the tree's superblock", func(t *testing.T, l *lab) { l.flip(t, "merkle", 100) }, sum,
			result{status: 0, stdout: sums()}, []string{damaged + "merkle: block 0 ", mended}},
		{"another root for pmem", func(t *testing.T, l *lab) { l.changeRoot(t) }, append([]string{"run", "--root", "pmem", l.image, "sum"}, data...),
			result{status: 0, stdout: sums()}, []string{damaged + "merkle: block 1 at offset 4096 is not what was sealed: ", mended}},
		{"the last block for virtio-fs", func(t *testing.T, l *lab) { l.flip(t, "image.erofs", l.size(t)-1) }, append([]string{"run", "--root", "virtiofs", l.image, "sum"}, data...),
			result{status: 0, stdout: sums()}, []string{damaged + "image.erofs: block ", " is not what was sealed: ", mended}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := l.copied(t)
			tt.damage(t, c)
			r := c.run(t, "", tt.args...)
			if r.status != tt.want.status || r.stdout != tt.want.stdout {
				t.Errorf("got status %d, output %q, standard error %q\nwant %+v", r.status, r.stdout, r.stderr, tt.want)
			}
			for _, want := range tt.stderr {
				if !strings.Contains(r.stderr, want) {
					t.Errorf("standard error %q\nwant %q", r.stderr, want)
				}
			}
			if n := strings.Count(r.stderr, "pex: error: "); n > 1 {
				t.Errorf("%d errors", n)
			}
		})
	}

	t.Run("mended", func(t *testing.T) {
		t.Parallel()
		c := l.copied(t)
		for _, tt := range tests {
			if strings.Contains(tt.name, "bit") {
				tt.damage(t, c)
			}
		}
		out, err := c.program("pexfs", "fsck", l.image).CombinedOutput()
		var e *exec.ExitError
		if !errors.As(err, &e) || e.ExitCode() != 1 || !strings.Contains(string(out), "healed") {
			t.Errorf("fsck: %v\n%s", err, out)
		}
		if r := c.run(t, "", sum...); r.status != 0 || r.stdout != sums() || strings.Contains(r.stderr, "damaged") {
			t.Errorf("afterwards: %+v", r)
		}
	})
}
