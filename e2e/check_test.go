package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestImageCheck checks image files that are right, and ones that are not.
func TestImageCheck(t *testing.T) {
	l := newLab(t)
	image, estargz := fixtureImage(t, formGzip), fixtureImage(t, formStargz)
	file := filepath.Join(t.TempDir(), "image.erofs")
	var b struct{ Root string }
	decode(t, l.do("pexfs", "image", "build", "-q", "--json", "-o", file, image), &b)
	big, motd := find(t, file, "bin/big"), find(t, file, "etc/motd")
	another := fixture()
	another[1][2].mode = 0o640 // etc/hosts
	other := "oci:" + filepath.Join(t.TempDir(), "other")
	if err := writeImage(strings.TrimPrefix(other, "oci:"), formGzip, packing{}, tars(another)); err != nil {
		t.Fatal(err)
	}
	flip := func(offs ...int64) func(*testing.T, string) {
		return func(t *testing.T, name string) { damage(t, name, offs...) }
	}
	cut := func(n int64) func(*testing.T, string) {
		return func(t *testing.T, name string) {
			if err := os.Truncate(name, n); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name   string
		damage func(*testing.T, string)
		args   []string // behind the file's name
		say    []string // of the error; none if there is none
	}{
		{"right", nil, nil, nil},
		{"its root", nil, []string{"--root", b.Root}, nil},
		{"another root", nil, []string{"--root", strings.Repeat("0", 64)}, []string{"its root is " + b.Root + ", not 0000"}},
		{"against its image", nil, []string{"--against", image}, nil},
		{"against another form of it", nil, []string{"--against", estargz}, nil},
		{"against an image that differs", nil, []string{"--against", other}, []string{`the images differ: "/etc/hosts": mode 0100644 in the file, 0100640 in the layers`}},
		{"against nothing", nil, []string{"--against"}, []string{"--against goes with the images to compare with"}},
		{"shifted, it is not", nil, []string{"--uid-shift", "1", "--against", image}, []string{"the images differ", "owner 0:0 in the file, 1:1 in the layers"}},
		{"a bit of a content", flip(big.content + 123), nil, nil},
		{"a bit of a content, with the root", flip(big.content + 123), []string{"--root", b.Root}, []string{", not " + b.Root}},
		{"a bit of a content, against its image", flip(big.content + 123), []string{"--against", image}, []string{"the images differ", "/also", "byte 123 is "}},
		{"a bit behind a content, with the root", flip(motd.content + 4000), []string{"--root", b.Root}, []string{", not " + b.Root}},
		{"a bit of the superblock", flip(1024 + 60), nil, []string{"checksum"}},
		{"a bit of an inode's size", flip(big.inode + 13), nil, []string{"invalid EROFS image: inode ", " of 8388608 (and "}},
		{"a bit of an inode's mode", flip(big.inode + 5), []string{"--against", image}, []string{"the images differ", "/also", "mode 0102755 in the file, 0100755 in the layers"}},
		{"a bit of an inode's time", flip(big.inode + 32), []string{"--against", image}, []string{"the images differ", "time 17000000"}},
		{"a byte less", cut(big.content + 3<<20 - 1), nil, []string{"invalid EROFS image"}},
		{"empty", cut(0), nil, []string{"invalid EROFS image"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, name := l.in(t), file
			if tt.damage != nil {
				name = copyFile(t, file)
				tt.damage(t, name)
			}
			args := append([]string{"image", "check", "-q", name}, tt.args...)
			if tt.say == nil {
				l.do("pexfs", args...)
			} else {
				l.fails(1, tt.say, "pexfs", args...)
			}
		})
	}
}

// TestImageMountErrors mounts files that are not to be mounted: by the kernel none that isn't sound, or that others may change.
func TestImageMountErrors(t *testing.T) {
	l := newLab(t)
	file := filepath.Join(t.TempDir(), "image.erofs")
	l.do("pexfs", "image", "build", "-q", "-o", file, fixtureImage(t, formGzip))
	inode := find(t, file, "bin/big").inode
	dir := t.TempDir()
	for _, tt := range []struct {
		name   string
		kernel bool
		change func(string) error
		say    []string
	}{
		{"others may write", true, func(s string) error { return os.Chmod(s, 0o646) }, []string{"others than root may change it (mode 0646, owner 0)"}},
		{"another's file", true, func(s string) error { return os.Chown(s, 65534, 0) }, []string{"others than root may change it", "owner 65534"}},
		{"a bit of an inode", true, func(s string) error { return flipBit(s, inode+13) }, []string{"by the kernel: it is not sound: "}},
		{"a bit of the superblock, by the kernel", true, func(s string) error { return flipBit(s, 1024+60) }, []string{"checksum"}},
		{"a bit of the superblock", false, func(s string) error { return flipBit(s, 1024+60) }, []string{"checksum"}},
		{"cut, by the kernel", true, func(s string) error { return os.Truncate(s, 1<<20) }, []string{"opening image", "invalid EROFS image"}},
		{"cut", false, func(s string) error { return os.Truncate(s, 1<<20) }, []string{"opening image", "invalid EROFS image"}},
		{"a folder", false, func(s string) error { return os.Mkdir(s, 0o755) }, []string{"not a regular file"}},
		{"nothing", false, func(string) error { return nil }, []string{"no such file"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "none")
			if tt.name != "a folder" && tt.name != "nothing" {
				name = copyFile(t, file)
			}
			if err := tt.change(name); err != nil {
				t.Fatal(err)
			}
			args := []string{"image", "mount"}
			if tt.kernel {
				args = append(args, "--kernel")
			}
			l := l.in(t)
			l.fails(1, tt.say, "pexfs", append(args, name, dir)...)
			l.umount(dir)
		})
	}
	l.fails(1, []string{"mounting on", "not a directory"}, "pexfs", "image", "mount", file, file)
	t.Run("a bit of an inode that nothing but the checker sees", func(t *testing.T) {
		// a FUSE mount of what isn't sound does no harm: what is wrong can't be read, and the rest can
		l, name := l.in(t), copyFile(t, file)
		damage(t, name, inode+13)
		dir := t.TempDir()
		l.do("pexfs", "image", "mount", name, dir)
		defer l.umount(dir)
		if b, err := os.ReadFile(filepath.Join(dir, "etc/motd")); err != nil || string(b) != "hello\n" {
			t.Errorf("etc/motd is %q, %v", b, err)
		}
	})
}

// TestKernelMountOptions looks at how the kernel mounts an image: read-only, nosuid, nodev, from the file itself.
func TestKernelMountOptions(t *testing.T) {
	l := newLab(t)
	file, dir := filepath.Join(t.TempDir(), "image.erofs"), t.TempDir()
	l.do("pexfs", "image", "build", "-q", "-o", file, fixtureImage(t, formGzip))
	l.do("pexfs", "image", "mount", "--kernel", file, dir)
	defer l.umount(dir)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if want := int64(unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV); st.Flags&want != want {
		t.Errorf("mounted with flags %#x", st.Flags)
	}
	if f, err := os.Open(filepath.Join(dir, "dev/null")); err == nil {
		f.Close()
		t.Error("a device of the image was opened")
	}
}
