package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestFsck damages a sealed image of the cache, mounted or not, made by tables of contents or from plain gzip: fsck finds just that
// (exit status 4 where it must not mend, and nothing is changed), mends it (1), and finds nothing more (0). The file is what it was before.
func TestFsck(t *testing.T) {
	for _, f := range []form{formGzip, formStargz} {
		l := newLab(t)
		image := fixtureImage(t, f)
		dir := l.mount(image)
		s := l.seal(dir)
		before := shaFile(t, s.file)
		big, text, root := find(t, s.file, "bin/big"), find(t, s.file, "text"), places{inode: find(t, s.file, "etc/motd").inode}
		want := list(t, dir)
		for _, tt := range []struct {
			name   string
			file   string
			offs   []int64
			bad    []int64 // offsets of blocks
			tree   bool
			mapped bool // the map
		}{
			{name: "a content", offs: []int64{big.content + 12345}, bad: []int64{big.content + 12288}},
			{name: "two contents", offs: []int64{big.content, text.content + 5000}, bad: sorted(big.content, text.content+4096)},
			{name: "an inode", offs: []int64{root.inode + 4}, bad: []int64{root.inode &^ 4095}},
			{name: "the superblock", offs: []int64{1024}, bad: []int64{0}},
			{name: "a gap", offs: []int64{1 << 20}, bad: []int64{1 << 20}},
			{name: "a content and an inode", offs: []int64{big.content + 1<<20, root.inode + 4}, bad: sorted(big.content+1<<20, root.inode&^4095)},
			{name: "the Merkle tree", file: "merkle", offs: []int64{5000}, tree: true},
			{name: "the map", file: "map", offs: []int64{4096 + 70}, mapped: true},
		} {
			for _, mounted := range []bool{true, false} {
				if tt.mapped && !mounted {
					continue // see TestFsckFiles
				}
				how := map[bool]string{true: "mounted", false: "not mounted"}[mounted]
				t.Run(fmt.Sprintf("%s/%s/%s", f, tt.name, how), func(t *testing.T) {
					l := l.in(t)
					if !mounted {
						l.umount(dir)
						l.do("pexfs", "daemon", "stop")
					}
					name := s.file
					if tt.file != "" {
						name = filepath.Join(filepath.Dir(s.file), tt.file)
					}
					damage(t, name, tt.offs...)
					damaged := shaFile(t, name)
					for _, run := range []struct {
						args   []string
						code   int
						healed bool
					}{{[]string{"fsck", "--json", "-n"}, 4, false}, {[]string{"fsck", "--json", image}, 1, true}, {[]string{"fsck", "--json"}, 0, false}} {
						out, code := l.try("pexfs", run.args...)
						if code != run.code {
							t.Fatalf("%q ended with %d, not %d: %s", run.args, code, run.code, out)
						}
						var r struct {
							Key               string
							Bad               int64
							Offsets           []int64
							Tree, Map, Healed bool
							Error             string
						}
						decode(t, strings.SplitN(out, "\n", 2)[0], &r)
						bad, tree, mapped := tt.bad, tt.tree, tt.mapped
						if run.code == 0 {
							bad, tree, mapped = nil, false, false
						}
						if r.Key != s.Key || !slices.Equal(r.Offsets, bad) || r.Bad != int64(len(bad)) || r.Tree != tree || r.Map != mapped || r.Healed != run.healed || r.Error != "" {
							t.Errorf("%q says %+v, want %d at %d, tree %v, map %v, healed %v", run.args, r, len(bad), bad, tree, mapped, run.healed)
						}
						if run.code == 4 && shaFile(t, name) != damaged {
							t.Errorf("%q has changed the file", run.args)
						}
					}
					if now := l.seal(image); now.Root != s.Root || shaFile(t, s.file) != before {
						t.Errorf("after mending the image is another, of root %s", now.Root)
					}
					if !mounted {
						l.do("pexfs", "mount", image, dir)
					}
					if d := diff(want, list(t, dir)); d != "" {
						t.Errorf("before and after:\n%s", d)
					}
				})
			}
		}
		l.umount(dir)
	}
}

// TestFsckFiles damages the files beside an image of which nobody has anything open: it can't be used as it is. fsck removes it (exit
// status 1), and the next mount makes it anew, the same.
func TestFsckFiles(t *testing.T) {
	l := newLab(t)
	image := fixtureImage(t, formStargz)
	dir := t.TempDir()
	seal := func() (sealed, string) {
		l.do("pexfs", "mount", image, dir)
		defer l.umount(dir)
		s := l.seal(dir)
		return s, shaFile(t, s.file)
	}
	first, sum := seal()
	for _, tt := range []struct {
		file   string
		damage func(name string) error
	}{
		{"map", func(name string) error { return flipBit(name, 4096+70) }},
		{"map", func(name string) error { return os.Truncate(name, 4000) }},
		{"info.json", func(name string) error { return os.Truncate(name, 20) }},
		{"image.erofs", func(name string) error { return os.Truncate(name, 1<<20) }},
		{"merkle", os.Remove},
	} {
		l.do("pexfs", "daemon", "stop")
		if err := tt.damage(filepath.Join(filepath.Dir(first.file), tt.file)); err != nil {
			t.Fatal(err)
		}
		if out, code := l.try("pexfs", "fsck", "-n"); code != 4 || !strings.Contains(out, first.Key[:12]) {
			t.Errorf("%s: fsck -n ended with %d: %s", tt.file, code, out)
		}
		if out, code := l.try("pexfs", "fsck"); code != 1 || !strings.Contains(out, "removed, to be made anew when it is next opened") {
			t.Errorf("%s: fsck ended with %d: %s", tt.file, code, out)
		}
		if out, code := l.try("pexfs", "fsck"); code != 0 || out != "" {
			t.Errorf("%s: fsck ended with %d: %s", tt.file, code, out)
		}
		if again, now := seal(); again.Root != first.Root || now != sum {
			t.Errorf("%s: the image that was made anew has root %s, not %s", tt.file, again.Root, first.Root)
		}
	}
}

// TestFsckPack damages what is kept of an image's layers: fsck finds that, and removes it; the image stays what it is.
func TestFsckPack(t *testing.T) {
	l := newLab(t)
	image := fixtureImage(t, formGzip)
	s := l.seal(l.mount(image))
	before := shaFile(t, s.file)
	l.do("pexfs", "daemon", "stop") // by then it is written
	name := filepath.Join(filepath.Dir(s.file), "layers")
	if err := flipBit(name, 100); err != nil {
		t.Fatal(err)
	}
	const said = "what is kept of its layers for other images is damaged"
	for _, run := range []struct {
		args []string
		code int
		out  string
	}{{[]string{"fsck", "-n"}, 4, said}, {[]string{"fsck", image}, 1, said + "; healed"}, {[]string{"fsck"}, 0, "all right"}} {
		if out, code := l.try("pexfs", run.args...); code != run.code || !strings.Contains(out, run.out) {
			t.Errorf("%q ended with %d: %s", run.args, code, out)
		}
	}
	if _, err := os.Stat(name); err == nil {
		t.Error("it is still there")
	}
	if shaFile(t, s.file) != before {
		t.Error("the image is another")
	}
}

func sorted(offs ...int64) []int64 {
	slices.Sort(offs)
	return offs
}

func shaFile(t *testing.T, name string) string {
	t.Helper()
	s, err := sha(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestFsckWithoutSource can't fetch what is damaged: exit status 4. As soon as the source is there again, the image can be completed.
func TestFsckWithoutSource(t *testing.T) {
	for _, f := range []form{formGzip, formStargz} {
		t.Run(string(f), func(t *testing.T) {
			l := newLab(t)
			image := fixtureImage(t, f)
			s := l.seal(l.mount(image))
			before := shaFile(t, s.file)
			damage(t, s.file, find(t, s.file, "bin/big").content)
			layout := strings.TrimPrefix(image, "oci:")
			if err := os.Rename(layout, layout+".away"); err != nil {
				t.Fatal(err)
			}
			if out, code := l.try("pexfs", "fsck", image); code != 4 || !strings.Contains(out, "the block at byte ") {
				t.Errorf("without the source fsck ended with %d: %s", code, out)
			}
			if err := os.Rename(layout+".away", layout); err != nil {
				t.Fatal(err)
			}
			// what can be fetched by itself isn't there any more, instead of being damaged
			want := map[form]int{formGzip: 1, formStargz: 0}[f]
			if out, code := l.try("pexfs", "fsck", image); code != want {
				t.Errorf("with the source fsck ended with %d, not %d: %s", code, want, out)
			}
			l.seal(image)
			if shaFile(t, s.file) != before {
				t.Error("the image is another")
			}
		})
	}
}

func TestFsckErrors(t *testing.T) {
	l := newLab(t)
	l.fails(8, []string{"busybox", "not in the cache"}, "pexfs", "fsck", "busybox")
	l.do("pexfs", "fsck") // of an empty cache
}
