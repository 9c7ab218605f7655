package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/erofs"
)

// TestStacks compares random stacks of layers four ways, in all forms that an image may have: the tree that the packages merge, the view
// over FUSE, read cold, and the kernel's mount of the sealed image must be what the judges make of the stack: the unpacker, umoci
// where it follows the rules (see makeStack), and the kernel's mount of mkfs.erofs's image of the unpacker's directory.
//
// PEX_STACKS is how many stacks are made (40), PEX_SEED the first one's seed (0), for longer runs and to see one again.
func TestStacks(t *testing.T) {
	l := newLab(t)
	first, n := number64(t, "PEX_SEED", 0), number64(t, "PEX_STACKS", 40)
	for seed := first; seed < first+n; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			compareStack(l.in(t), seed)
		})
	}
}

func number64(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func compareStack(l *lab, seed uint64) {
	t := l.t
	dir := t.TempDir()
	oracle := filepath.Join(dir, "oracle")
	if err := os.Mkdir(oracle, 0o755); err != nil {
		t.Fatal(err)
	}
	s := makeStack(t, seed, oracle)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("to see this alone: make build && PEX_BUILD=$PWD/build PEX_SEED=%d PEX_STACKS=1 go test -run '^TestStacks$' ./e2e\n%s", seed, describe(s.layers))
		}
	})
	r := rand.New(rand.NewPCG(seed, 1))
	p := packing{members: pick(r, 1, 1, 3), chunk: pick(r, 0, 1000, 4096), minChunk: pick(r, 0, 0, 20000)}
	for _, f := range forms() {
		if err := writeImage(filepath.Join(dir, string(f)), f, p, tars(s.layers)); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
	}
	if s.refused != nil {
		refuse(l, s, dir)
		return
	}
	want := list(t, oracle).counted()
	if s.tame {
		if d := diff(want, umociTree(t, filepath.Join(dir, string(formGzip))).counted()); d != "" {
			t.Fatalf("-unpacker +umoci\n%s", d)
		}
	}
	if mkfsTakes(want) {
		if d := diff(want, mkfsTree(t, oracle)); d != "" {
			t.Fatalf("-unpacker +mkfs.erofs\n%s", d)
		}
	}
	converted := filepath.Join(dir, "converted")
	l.do("pexfs", "convert", "oci:"+filepath.Join(dir, string(pick(r, formTar, formGzip, formZstd))), "oci:"+converted)
	for _, f := range forms() {
		fourWays(l, want, filepath.Join(dir, string(f)), f.rounded())
	}
	fourWays(l, want, converted, true)
}

// fourWays compares the image of an OCI layout with what it must be.
func fourWays(l *lab, want files, layout string, tocs bool) {
	t := l.t
	t.Helper()
	name := filepath.Base(layout)
	rounded := func(f files) files {
		if tocs {
			return f.seconds()
		}
		return f
	}
	want = rounded(want)
	check := func(what string, got files) {
		t.Helper()
		if d := diff(want, rounded(got)); d != "" {
			t.Errorf("%s: -want +%s\n%s", name, what, d)
		}
	}
	got, err := merged(t, "oci:"+layout)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	check("merged tree", got)
	dir := l.mount("--no-fill", "oci:"+layout)
	check("view", list(t, dir))
	image := l.seal(dir).file
	check("view, sealed", list(t, dir))
	check("kernel's mount", kernelTree(t, image))
	if err := checkImage(image); err != nil {
		t.Errorf("%s: checking the image: %v", name, err)
	}
	if out, err := exec.Command("fsck.erofs", image).CombinedOutput(); err != nil || strings.Contains(string(out), "<E>") {
		t.Errorf("%s: fsck.erofs: %v\n%s", name, err, out)
	}
	l.umount(dir)
}

// refuse holds that an image is refused in every form, and nothing of it stays.
func refuse(l *lab, s *stack, dir string) {
	mnt := l.t.TempDir()
	for _, f := range forms() {
		layout := "oci:" + filepath.Join(dir, string(f))
		if _, err := merged(l.t, layout); err == nil {
			l.t.Errorf("%s: merged, although: %v", f, s.refused)
		}
		if out, code := l.try("pexfs", "mount", layout, mnt); code != 1 || !strings.Contains(out, "layer") {
			l.t.Errorf("%s: mount ended with %d, although %v: %s", f, code, s.refused, out)
			l.umount(mnt)
		}
	}
}

// umociTree is what umoci unpacks of an OCI layout's image.
func umociTree(t *testing.T, layout string) files {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "rootfs")
	if out, err := exec.Command("umoci", "raw", "unpack", "--image", layout+":latest", dir).CombinedOutput(); err != nil {
		t.Fatalf("umoci: %v\n%s", err, out)
	}
	return list(t, dir)
}

// mkfsTree is what the kernel shows of mkfs.erofs's image of a directory.
func mkfsTree(t *testing.T, dir string) files {
	t.Helper()
	image := filepath.Join(t.TempDir(), "mkfs.erofs")
	if out, err := exec.Command("mkfs.erofs", "--quiet", "-Eforce-inode-extended", image, dir).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, out)
	}
	return kernelTree(t, image)
}

// mkfsTakes tells whether mkfs.erofs 1.5 takes a directory: it cuts names of 255 bytes, and fails at paths of some 850.
func mkfsTakes(f files) bool {
	for p := range f {
		if len(p) > 800 || len(path.Base(p)) == 255 {
			return false
		}
	}
	return true
}

// kernelTree is what the kernel shows of an image.
func kernelTree(t *testing.T, image string) files {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(image, dir, "erofs", unix.MS_RDONLY, ""); err != nil {
		t.Fatalf("mounting %s: %v", image, err)
	}
	defer unmount(t, dir)
	return list(t, dir)
}

// unmount ends a mount. A process that another test is just starting has copies of this one's descriptors until it executes its program.
func unmount(t *testing.T, dir string) {
	t.Helper()
	err := unix.Unmount(dir, 0)
	for end := time.Now().Add(10 * time.Second); err == unix.EBUSY && time.Now().Before(end); err = unix.Unmount(dir, 0) {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Error(err)
	}
}

// checkImage has the project's own checker look for what neither the kernel nor fsck.erofs sees.
func checkImage(image string) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return erofs.Check(f, st.Size())
}
