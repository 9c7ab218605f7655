package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// module makes an ELF file with a section .modinfo.
func module(info string) []byte {
	const names = "\x00.modinfo\x00.shstrtab\x00"
	var b bytes.Buffer
	w := func(v any) { binary.Write(&b, binary.LittleEndian, v) }
	h := elf.Header64{
		Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64, Shentsize: 64, Shnum: 3, Shstrndx: 2,
		Shoff: uint64(64 + len(info) + len(names)),
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	w(h)
	b.WriteString(info + names)
	w(elf.Section64{})
	w(elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: 64, Size: uint64(len(info)), Addralign: 1})
	w(elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(64 + len(info)), Size: uint64(len(names)), Addralign: 1})
	return b.Bytes()
}

func modInfo(name, depends string) []byte {
	return module("license=GPL\x00depends=" + depends + "\x00name=" + name + "\x00")
}

func names(list []Module) []string {
	var out []string
	for _, m := range list {
		out = append(out, m.Name)
	}
	return out
}

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "modules.dep"), []byte(
		"kernel/fs/fuse/fuse.ko.xz:\n"+
			"kernel/fs/fuse/virtiofs.ko.xz: kernel/fs/fuse/fuse.ko.xz kernel/v/virtio_ring.ko kernel/v/virtio.ko\n"+
			"kernel/v/virtio.ko:\nkernel/v/virtio_ring.ko: kernel/v/virtio.ko\n"+
			"kernel/crypto/crc32c-intel.ko:\n"))
	write(t, filepath.Join(dir, "modules.builtin"), []byte("kernel/fs/overlayfs/overlay.ko\n"))
	m, err := OpenModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		ask  []string
		want []string
	}{
		{"nothing", nil, nil},
		{"dependencies first, once", []string{"virtio", "virtiofs", "fuse"}, []string{"virtio", "virtio_ring", "fuse", "virtiofs"}},
		{"built in", []string{"overlay"}, nil},
		{"dash and underscore", []string{"crc32c_intel", "crc32c-intel"}, []string{"crc32c_intel"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := m.Resolve(tt.ask...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, names(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := m.Resolve("nfs"); !errors.Is(err, ErrNoModule) {
		t.Errorf("unknown module: %v", err)
	}
	if !m.Has("overlay") || !m.Has("crc32c-intel") || m.Has("nfs") {
		t.Error("Has is wrong")
	}
	for _, bad := range []string{"../../etc/x.ko:\n", "kernel/a.ko: /etc/passwd\n", "no colon\n"} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "modules.dep"), []byte(bad))
		if _, err := OpenModules(dir); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestUnpackModule(t *testing.T) {
	want := modInfo("x", "")
	for name, file := range map[string][]byte{"plain": want, "gzip": gz(want), "zstd": zst(want)} {
		got, err := Module{Name: "x"}.Unpack(file)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	for name, file := range map[string][]byte{
		"empty": nil, "text": []byte("hello"), "packed text": gz([]byte("hello")), "truncated": zst(want)[:20],
	} {
		if _, err := (Module{Name: "x"}).Unpack(file); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := (Module{Name: "x"}).Unpack([]byte(xzMagic + "...")); !errors.Is(err, ErrXZ) {
		t.Errorf("xz without the program: %v", err)
	}
}

func TestWriteDeps(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "kernel/a/top.ko"), modInfo("top", "left,right"))
	write(t, filepath.Join(dir, "kernel/a/left.ko.zst"), zst(modInfo("left", "base-x")))
	write(t, filepath.Join(dir, "kernel/b/right.ko"), modInfo("right", "base_x,builtin"))
	write(t, filepath.Join(dir, "kernel/b/base-x.ko"), modInfo("base_x", ""))
	write(t, filepath.Join(dir, "kernel/b/circle.ko"), modInfo("circle", "round"))
	write(t, filepath.Join(dir, "kernel/b/round.ko"), modInfo("round", "circle"))
	if err := writeDeps(dir); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		t.Fatal(err)
	}
	want := "kernel/b/base-x.ko:\n" +
		"kernel/b/circle.ko: kernel/b/round.ko\n" +
		"kernel/a/left.ko.zst: kernel/b/base-x.ko\n" +
		"kernel/b/right.ko: kernel/b/base-x.ko\n" +
		"kernel/b/round.ko: kernel/b/circle.ko\n" +
		"kernel/a/top.ko: kernel/b/right.ko kernel/a/left.ko.zst kernel/b/base-x.ko\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	write(t, filepath.Join(dir, "kernel/bad.ko"), []byte("\x7fELFnot"))
	if err := writeDeps(dir); err == nil {
		t.Error("no error for a broken module")
	}
}
