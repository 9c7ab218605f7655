package initramfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pexfs/pex/vm/kernel"
)

// entry is what parse reads of an archive.
type entry struct {
	Name         string
	Mode         uint64
	Major, Minor uint64
	Data         string
}

// parse reads an archive as the kernel's documentation describes it, and is strict.
func parse(t *testing.T, b []byte) []entry {
	t.Helper()
	if len(b)%512 != 0 {
		t.Errorf("archive of %d bytes", len(b))
	}
	var list []entry
	inodes := make(map[uint64]bool)
	at := 0
	next := func(n int) []byte {
		if at+n > len(b) {
			t.Fatalf("archive ends at %d, want %d bytes at %d", len(b), n, at)
		}
		p := b[at : at+n]
		at += n
		for at%4 != 0 {
			if b[at] != 0 {
				t.Fatalf("padding at %d is not zero", at)
			}
			at++
		}
		return p
	}
	for {
		start := at
		if string(b[at:at+6]) != "070701" {
			t.Fatalf("no magic number at %d", at)
		}
		var f [13]uint64
		for i := range f {
			var err error
			if f[i], err = strconv.ParseUint(string(b[at+6+8*i:at+14+8*i]), 16, 32); err != nil {
				t.Fatal(err)
			}
		}
		name := next(110 + int(f[11]))[110:]
		if name[len(name)-1] != 0 || bytes.IndexByte(name, 0) != len(name)-1 {
			t.Fatalf("name %q at %d", name, start)
		}
		e := entry{string(name[:len(name)-1]), f[1], f[9], f[10], string(next(int(f[6])))}
		if e.Name == "TRAILER!!!" {
			if len(bytes.Trim(b[at:], "\x00")) != 0 {
				t.Error("bytes behind the end")
			}
			return list
		}
		if inodes[f[0]] {
			t.Errorf("%s: inode %d again", e.Name, f[0])
		}
		inodes[f[0]] = true
		if f[2] != 0 || f[3] != 0 || f[5] != 0 {
			t.Errorf("%s: owner %d:%d, time %d", e.Name, f[2], f[3], f[5])
		}
		list = append(list, e)
	}
}

// kernelDir makes a folder of modules; their content is their name behind what an ELF file begins with.
func kernelDir(t *testing.T, dep, builtin string) string {
	t.Helper()
	dir := t.TempDir()
	put := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("modules.dep", dep)
	put("modules.builtin", builtin)
	for line := range strings.Lines(dep) {
		name, _, _ := strings.Cut(line, ":")
		put(name, "\x7fELF "+name)
	}
	return dir
}

const deps = "virtio.ko:\nvirtio_ring.ko: virtio.ko\nvirtio_pci.ko: virtio_ring.ko virtio.ko\n" +
	"virtio_console.ko: virtio_ring.ko virtio.ko\ncrc32c_generic.ko:\nerofs.ko:\nnd_pmem.ko: nd_btt.ko\nnd_btt.ko:\n"

const builtin = "kernel/overlay.ko\nkernel/virtio_pmem.ko\n"

func TestBuild(t *testing.T) {
	spec := Spec{
		Init: []byte("init!"), ModuleDir: kernelDir(t, deps, builtin),
		Features: []Feature{EROFS, Overlay, Console, PCI, Pmem},
	}
	var b bytes.Buffer
	if err := Build(&b, spec); err != nil {
		t.Fatal(err)
	}
	key, err := Key(spec)
	if err != nil {
		t.Fatal(err)
	}
	want := []entry{
		{"dev", 0o40755, 0, 0, ""},
		{"dev/console", 0o20600, 5, 1, ""},
		{"dev/null", 0o20666, 1, 3, ""},
		{"pex", 0o40755, 0, 0, ""},
		{"pex/build", 0o100444, 0, 0, key + "\n"},
	}
	list := ""
	for _, name := range []string{
		"virtio", "virtio_ring", "virtio_pci", "virtio_console", "nd_btt", "nd_pmem", "crc32c_generic", "erofs",
	} {
		name += ".ko"
		list += name + "\n"
		want = append(want, entry{"pex/" + name, 0o100444, 0, 0, "\x7fELF " + name})
	}
	want = append(want, entry{"pex/modules", 0o100444, 0, 0, list}, entry{"init", 0o100755, 0, 0, "init!"})
	if diff := cmp.Diff(want, parse(t, b.Bytes())); diff != "" {
		t.Error(diff)
	}

	again := spec
	again.Features = []Feature{PCI, Pmem, Console, Overlay, EROFS}
	var b2 bytes.Buffer
	if err := Build(&b2, again); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), b2.Bytes()) {
		t.Error("the same parts gave other bytes")
	}
}

// TestWanted leaves out what a kernel lacks and can do without.
func TestWanted(t *testing.T) {
	const dep = "virtio.ko:\nerofs.ko:\n"
	for name, tt := range map[string]struct{ dep, want string }{
		"lacking": {dep, "erofs.ko\n"},
		"there":   {dep + "virtio-rng.ko: virtio.ko\n", "erofs.ko\nvirtio.ko\nvirtio_rng.ko\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := Build(&b, Spec{ModuleDir: kernelDir(t, tt.dep, ""), Features: []Feature{EROFS, RNG}}); err != nil {
				t.Fatal(err)
			}
			for _, e := range parse(t, b.Bytes()) {
				if e.Name == "pex/modules" && e.Data != tt.want {
					t.Errorf("modules %q, want %q", e.Data, tt.want)
				}
			}
		})
	}
}

func TestKey(t *testing.T) {
	dir := kernelDir(t, deps, builtin)
	base := Spec{Init: []byte("init"), ModuleDir: dir, Features: []Feature{PCI}}
	changed := kernelDir(t, deps, builtin)
	if err := os.WriteFile(filepath.Join(changed, "virtio.ko"), []byte("\x7fELF other"), 0o644); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]string)
	for name, change := range map[string]func(*Spec){
		"base":         func(*Spec) {},
		"init":         func(s *Spec) { s.Init = []byte("Init") },
		"module":       func(s *Spec) { s.ModuleDir = changed },
		"features":     func(s *Spec) { s.Features = []Feature{PCI, Console} },
		"no modules":   func(s *Spec) { s.ModuleDir = "" },
		"with signing": func(s *Spec) { s.KeepSignatures = true },
	} {
		s := base
		change(&s)
		key, err := Key(s)
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[key]; ok {
			t.Errorf("%s and %s have the same key", name, other)
		}
		seen[key] = name
	}
	_, err := Key(Spec{ModuleDir: dir, Features: []Feature{VirtioFS}})
	if !errors.Is(err, kernel.ErrNoModule) {
		t.Errorf("kernel without a module: %v", err)
	}
}

func TestCached(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "boot")
	s := Spec{Init: []byte("init"), ModuleDir: kernelDir(t, deps, builtin), Features: []Feature{PCI}}
	var want bytes.Buffer
	if err := Build(&want, s); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		path, key, err := Cached(dir, s)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want.Bytes()) {
			t.Errorf("%d bytes, want %d; %v", len(got), want.Len(), err)
		}
		if k, err := Key(s); k != key || err != nil {
			t.Error(k, key, err)
		}
	}
	if left, err := os.ReadDir(dir); len(left) != 1 || err != nil {
		t.Error(left, err)
	}
}

func TestUnsigned(t *testing.T) {
	const magic = "~Module signature appended~\n"
	sign := func(body, sig string, n uint32) string {
		info := binary.BigEndian.AppendUint32(make([]byte, 8), n)
		return body + sig + string(info) + magic
	}
	for i, tt := range []struct{ in, want string }{
		{"", ""},
		{"body", "body"},
		{sign("body", "SIG", 3), "body"},
		{sign("", "", 0), ""},
		{sign("body", "", 5), sign("body", "", 5)},
		{sign("body", "", 1<<32-1), sign("body", "", 1<<32-1)},
		{"short" + magic, "short" + magic},
		{magic, magic},
	} {
		if got := string(unsigned([]byte(tt.in))); got != tt.want {
			t.Errorf("%d: got %q, want %q", i, got, tt.want)
		}
	}
}

// failing fails after n bytes.
type failing struct{ n int }

func (f *failing) Write(p []byte) (int, error) {
	if f.n -= len(p); f.n < 0 {
		return 0, errors.New("full")
	}
	return len(p), nil
}

func TestBuildFails(t *testing.T) {
	s := Spec{Init: []byte("init"), ModuleDir: kernelDir(t, deps, builtin), Features: []Feature{PCI}}
	for n := 0; n < 1536; n += 100 {
		if err := Build(&failing{n}, s); err == nil {
			t.Errorf("no error with room for %d bytes", n)
		}
	}
	s.ModuleDir = t.TempDir()
	if err := Build(&bytes.Buffer{}, s); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no modules.dep: %v", err)
	}
}

func ExampleBuild() {
	var archive bytes.Buffer
	err := Build(&archive, Spec{Init: []byte("#!"), Features: []Feature{PCI, Console, Overlay, VirtioFS}})
	fmt.Println(archive.Len()%512, err)
	// Output: 0 <nil>
}
