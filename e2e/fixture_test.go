package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/erofs"
)

// fixture is a small image of two layers with one of everything: big and small contents, one of them twice, attributes, owners, devices,
// links. All that it has is in whole seconds, so that its forms are the same tree.
func fixture() [][]entry {
	at := unix.Timespec{Sec: 1700000000}
	capability := string(append(binary.LittleEndian.AppendUint32(nil, 0x02000001), make([]byte, 16)...))
	acl := binary.LittleEndian.AppendUint32(nil, 2)
	for _, a := range [][3]uint32{{1, 7, 1<<32 - 1}, {2, 5, 1000}, {4, 4, 1<<32 - 1}, {16, 5, 1<<32 - 1}, {32, 0, 1<<32 - 1}} {
		acl = binary.LittleEndian.AppendUint16(acl, uint16(a[0]))
		acl = binary.LittleEndian.AppendUint16(acl, uint16(a[1]))
		acl = binary.LittleEndian.AppendUint32(acl, a[2])
	}
	big := noise(1, 3<<20)
	return [][]entry{
		{
			{name: "etc", kind: '5', mode: 0o755, mtime: at},
			{name: "etc/motd", kind: '0', mode: 0o644, mtime: at, content: whole([]byte("hello\n"))},
			{name: "etc/gone", kind: '0', mode: 0o644, mtime: at, content: whole(noise(2, 50_000))},
			{name: "bin", kind: '5', mode: 0o755, mtime: at},
			{name: "bin/big", kind: '0', mode: 0o755, uid: 1, gid: 2, mtime: at, content: whole(big)},
			{name: "bin/ping", kind: '0', mode: 0o4755, mtime: at, content: whole(noise(3, 70_000)), xattrs: map[string]string{"security.capability": capability}},
			{name: "bin/same", kind: '0', mode: 0o755, mtime: at, content: whole(noise(3, 70_000))},
			{name: "dev", kind: '5', mode: 0o1777, mtime: at},
			{name: "dev/null", kind: '3', mode: 0o666, mtime: at, major: 1, minor: 3},
			{name: "text", kind: '0', mode: 0o600, mtime: at, content: whole(bytes.Repeat([]byte("a line of text\n"), 20_000))},
		},
		{
			{name: "etc", kind: '5', mode: 0o750, uid: 3, gid: 4, mtime: at, xattrs: map[string]string{"system.posix_acl_access": string(acl)}},
			{name: "etc/.wh.gone", kind: '0', mtime: at},
			{name: "etc/hosts", kind: '0', mode: 0o644, uid: 65534, gid: 65534, mtime: at, content: whole(noise(4, 10_000)), xattrs: map[string]string{"user.a": "b"}},
			{name: "etc/link", kind: '2', mode: 0o777, mtime: at, link: "../bin/big"},
			{name: "etc/also", kind: '1', mode: 0o755, uid: 1, gid: 2, mtime: at, link: "bin/big"},
			{name: "run", kind: '6', mode: 0o600, mtime: at},
			{name: "empty", kind: '0', mode: 0o644, mtime: at},
		},
	}
}

// noise is n bytes that no compressor makes smaller.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := 0; i < n; i += 8 {
		var v [8]byte
		binary.LittleEndian.PutUint64(v[:], r.Uint64())
		copy(b[i:], v[:])
	}
	return b
}

// fixtureImage writes the fixture as an OCI layout, and returns its reference.
func fixtureImage(t *testing.T, f form) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), string(f))
	if err := writeImage(dir, f, packing{}, tars(fixture())); err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir
}

// damage flips a bit of the byte at each offset of a file.
func damage(t *testing.T, name string, offs ...int64) {
	t.Helper()
	for _, off := range offs {
		if err := flipBit(name, off); err != nil {
			t.Fatalf("damaging %s: %v", name, err)
		}
	}
}

func flipBit(name string, off int64) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		return err
	}
	b[0] ^= 4
	_, err = f.WriteAt(b[:], off)
	return err
}

// places are offsets in an image file.
type places struct{ content, inode int64 }

// find tells where in an image the content and the inode of a file are.
func find(t *testing.T, image, path string) places {
	t.Helper()
	f, err := os.Open(image)
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
	nid := im.Super().RootNid
	in, err := im.Inode(nid)
	for name := range strings.SplitSeq(path, "/") {
		if err == nil {
			nid, err = im.Lookup(in, name)
		}
		if err == nil {
			in, err = im.Inode(nid)
		}
	}
	if err != nil {
		t.Fatalf("%s in %s: %v", path, image, err)
	}
	off, err := im.DataOff(in)
	if err != nil {
		t.Fatal(err)
	}
	return places{off, im.Super().MetaOffset + int64(nid)*32}
}

// copyFile copies a file, and returns the copy's name.
func copyFile(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), filepath.Base(from))
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
	return to
}

// fails runs a program that must end with an exit status and say, in an error of one line and perhaps a hint, all words.
func (l *lab) fails(code int, words []string, name string, args ...string) {
	l.t.Helper()
	out, got := l.try(name, args...)
	if got != code {
		l.t.Errorf("%s %q ended with %d, not %d: %s", name, args, got, code, out)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	i := slices.IndexFunc(lines, func(s string) bool { return strings.HasPrefix(s, name+": error: ") })
	if i < 0 {
		l.t.Errorf("%s %q says no error: %s", name, args, out)
		return
	}
	if rest := lines[i+1:]; len(rest) > 1 || len(rest) == 1 && !strings.HasPrefix(rest[0], name+": hint: ") {
		l.t.Errorf("%s %q: more than an error and a hint: %s", name, args, out)
	}
	for _, w := range words {
		if !strings.Contains(lines[i], w) {
			l.t.Errorf("%s %q: %q is not in: %s", name, args, w, lines[i])
		}
	}
}

// nothingIn holds that a folder has only these names in it.
func nothingIn(t *testing.T, dir string, but ...string) {
	t.Helper()
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if !slices.Contains(but, n.Name()) {
			t.Errorf("%s was left in %s", n.Name(), fmt.Sprint(filepath.Base(dir)))
		}
	}
}
