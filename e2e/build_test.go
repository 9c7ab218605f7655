package e2e

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestImageBuild builds an image in each of the ways that `pexfs image build` has. What it wrote is sound, what it was made from, and
// looks as it should through FUSE and to the kernel.
func TestImageBuild(t *testing.T) {
	l := newLab(t)
	want := madeOf(t, fixture())
	other := [][]entry{{{name: "f", kind: '0', mode: 0o644, content: fixture()[0][4].content}}}
	dir := t.TempDir()
	if err := writeImage(filepath.Join(dir, "other"), formZstd, packing{}, tars(other)); err != nil {
		t.Fatal(err)
	}
	image := fixtureImage(t, formGzip)
	sealedRoot := l.seal(l.mount(image)).Root
	packed := maps.Clone(want)
	clear(packed)
	maps.Insert(packed, below("/one", want))
	maps.Insert(packed, below("/two/deep", madeOf(t, other)))
	packed[""], packed["/two"] = file{Mode: 0o40755}, file{Mode: 0o40755}
	plain := int64(0)
	for _, tt := range []struct {
		name  string
		args  []string // of build
		of    []string // what is built, and checked against
		again []string // those of args that a check needs, too
		want  files
		same  bool // the bytes of the sealed image
		less  bool // smaller than the plain one
	}{
		{name: "plain", of: []string{image}, want: want, same: true},
		{name: "eStargz", of: []string{fixtureImage(t, formStargz)}, want: want},
		{name: "verified", args: []string{"--verify", "full"}, of: []string{fixtureImage(t, formChunked)}, want: want},
		{name: "shifted", args: []string{"--uid-shift", "100000"}, again: []string{"--uid-shift", "100000"}, of: []string{image}, want: shifted(t, want, 100000)},
		{name: "lz4", args: []string{"--compress", "lz4"}, of: []string{image}, want: want, less: true},
		{name: "lz4, well", args: []string{"--compress", "lz4", "--level", "9"}, of: []string{image}, want: want, less: true},
		{name: "zstd", args: []string{"--compress", "zstd"}, of: []string{image}, want: want, less: true},
		{name: "packed", args: []string{"--pack"}, again: []string{"--pack"}, of: []string{"one=" + image, "two/deep=oci:" + filepath.Join(dir, "other")}, want: packed.counted()},
		{name: "packed, shifted, compressed", args: []string{"--pack", "--uid-shift", "7", "--compress", "zstd"}, again: []string{"--pack", "--uid-shift", "7"},
			of: []string{"one=" + image, "two/deep=oci:" + filepath.Join(dir, "other")}, want: shifted(t, packed, 7).counted(), less: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, out := l.in(t), t.TempDir()
			name, tree := filepath.Join(out, "image.erofs"), filepath.Join(out, "tree")
			var b struct {
				File, Root, Verity string
				Size, Inodes       int64
			}
			decode(t, l.do("pexfs", append(append([]string{"image", "build", "-q", "--json", "-o", name, "--verity", tree}, tt.args...), tt.of...)...), &b)
			st, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			if b.File != name || b.Verity != tree || b.Size != st.Size() || st.Mode() != 0o644 {
				t.Errorf("the file is of %d bytes and mode %v; build says %+v", st.Size(), st.Mode(), b)
			}
			nothingIn(t, out, "image.erofs", "tree")
			if plain == 0 {
				plain = b.Size
			}
			if (b.Root == sealedRoot) != tt.same {
				t.Errorf("root %s, the sealed image has %s", b.Root, sealedRoot)
			}
			if tt.less && b.Size >= plain {
				t.Errorf("%d bytes, the plain image has %d", b.Size, plain)
			}
			l.do("pexfs", append(append([]string{"image", "check", "-q", "--root", b.Root, name, "--against"}, tt.again...), tt.of...)...)
			if out, err := exec.Command("veritysetup", "verify", name, tree, b.Root).CombinedOutput(); err != nil {
				t.Errorf("veritysetup: %v\n%s", err, out)
			}
			for how, got := range map[string]files{"view": l.viewed(name), "kernel": l.kernel(name)} {
				if d := diff(tt.want, got); d != "" {
					t.Errorf("-want +%s\n%s", how, d)
				}
			}
		})
	}
}

// shifted is a tree with n added to its owners, also to those that attributes name.
func shifted(t *testing.T, fs files, n uint32) files {
	out := maps.Clone(fs)
	for p, f := range fs {
		f.UID, f.GID = f.UID+n, f.GID+n
		for kv := range strings.FieldsSeq(f.Xattrs) {
			k, v, _ := strings.Cut(kv, "=")
			b, err := hex.DecodeString(v)
			if err != nil {
				t.Fatal(err)
			}
			switch k {
			case "system.posix_acl_access":
				for at := 4; at < len(b); at += 8 {
					if id := binary.LittleEndian.Uint32(b[at+4:]); id != 1<<32-1 {
						binary.LittleEndian.PutUint32(b[at+4:], id+n)
					}
				}
			case "security.capability": // version 3 says whose root may use it
				b[3] = 3
				b = binary.LittleEndian.AppendUint32(b, n)
			}
			f.Xattrs = strings.Replace(f.Xattrs, kv, fmt.Sprintf("%s=%x", k, b), 1)
		}
		out[p] = f
	}
	return out
}

// TestImageBuildErrors has builds that fail. What was there before them stays, and nothing else does.
func TestImageBuildErrors(t *testing.T) {
	l := newLab(t)
	image, dir := fixtureImage(t, formGzip), t.TempDir()
	old := filepath.Join(dir, "old")
	if err := os.WriteFile(old, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		args []string
		say  []string
	}{
		"no file":              {[]string{image}, []string{"building an image: name its file with -o"}},
		"a folder":             {[]string{"-o", filepath.Join(dir, "folder"), image}, []string{"folder: there is something that isn't a file"}},
		"no folder":            {[]string{"-o", filepath.Join(dir, "none/x"), image}, []string{"none", "no such file"}},
		"two images":           {[]string{"-o", old, image, image}, []string{"--pack"}},
		"a prefix":             {[]string{"-o", old, "a=" + image}, []string{"prefix (a)", "--pack"}},
		"one prefix twice":     {[]string{"-o", old, "--pack", "a=" + image, "a=" + image}, []string{`packing a tree below "a"`}},
		"a prefix inside":      {[]string{"-o", old, "--pack", "a=" + image, "a/b=" + image}, []string{`packing a tree below "a/b"`}},
		"a prefix that climbs": {[]string{"-o", old, "--pack", "../a=" + image}, []string{`packing a tree below "../a"`}},
		"a compression":        {[]string{"-o", old, "--compress", "lzma", image}, []string{"lzma"}},
		"not an image":         {[]string{"-o", old, "oci:" + dir}, []string{dir}},
		"too large":            {[]string{"-o", old, "--max-size", "1k", image}, []string{"layer sha256:", "1024"}},
		"a shift too far":      {[]string{"-o", old, "--uid-shift", "4294967290", image}, []string{"shifting", "by 4294967290"}},
	} {
		t.Run(name, func(t *testing.T) {
			l.in(t).fails(1, tt.say, "pexfs", append([]string{"image", "build", "-q"}, tt.args...)...)
			if b, err := os.ReadFile(old); err != nil || string(b) != "old" {
				t.Errorf("what was there is %q now, %v", b, err)
			}
			nothingIn(t, dir, "old", "folder")
		})
	}
	l.do("pexfs", "image", "build", "-q", "-o", old, image)
	l.do("pexfs", "image", "check", old)
}
