package kernel

import (
	"bytes"
	stdcmp "cmp"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
)

// bzImage makes a file that looks like one, with a version and a payload.
func bzImage(version string, payload []byte) []byte {
	b := make([]byte, 5*512)
	b[0x1f1] = 4
	binary.LittleEndian.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], setupMagic)
	binary.LittleEndian.PutUint16(b[0x206:], 0x20f)
	binary.LittleEndian.PutUint16(b[0x20e:], 0x200)
	copy(b[0x400:], version+" (builder@example) #1\x00")
	binary.LittleEndian.PutUint32(b[0x248:], 100)
	binary.LittleEndian.PutUint32(b[0x24c:], uint32(len(payload)))
	b = append(b, make([]byte, 100)...)
	return append(b, payload...)
}

// elfFile makes an ELF file with one note.
func elfFile(noteType uint32) []byte {
	var b bytes.Buffer
	w := func(v any) { binary.Write(&b, binary.LittleEndian, v) }
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Phoff: 64, Ehsize: 64,
		Phentsize: 56, Phnum: 1, Shentsize: 64,
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	w(h)
	w(elf.Prog64{Type: uint32(elf.PT_NOTE), Off: 120, Filesz: 44})
	w([]uint32{4, 4, 6}) // another note first
	w([]byte("Xen\x00abcd"))
	w([]uint32{4, 8, noteType})
	w([]byte("Xen\x00"))
	w(uint32(0x1000000))
	b.Write(make([]byte, 8))
	return b.Bytes()
}

func withSize(packed []byte, size int) []byte {
	return binary.LittleEndian.AppendUint32(packed, uint32(size))
}

func gz(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func zst(b []byte) []byte {
	w, _ := zstd.NewWriter(nil)
	return w.EncodeAll(b, nil)
}

// lz4Stored is an LZ4 legacy frame of literals only.
func lz4Stored(b []byte) []byte {
	block := []byte{0xf0}
	n := len(b) - 15
	for ; n >= 255; n -= 255 {
		block = append(block, 255)
	}
	block = append(append(block, byte(n)), b...)
	return append(binary.LittleEndian.AppendUint32([]byte(lz4Magic), uint32(len(block))), block...)
}

func write(t *testing.T, path string, b []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestVmlinux(t *testing.T) {
	want := elfFile(18)
	for _, tt := range []struct {
		name    string
		file    []byte
		wantErr error
	}{
		{"lz4", bzImage("6.1", withSize(lz4Stored(want), len(want))), nil},
		{"gzip", bzImage("6.1", gz(want)), nil},
		{"zstd", bzImage("6.1", withSize(zst(want), len(want))), nil},
		{"plain payload", bzImage("6.1", want), nil},
		{"ELF", want, nil},
		{"no PVH", bzImage("6.1", gz(elfFile(1))), ErrNoPVH},
		{"ELF without PVH", elfFile(1), ErrNoPVH},
		{"wrong size", bzImage("6.1", withSize(zst(want), len(want)-1)), ErrFormat},
		{"bomb", bzImage("6.1", withSize(zst(want), 1<<30)), ErrFormat},
		{"unknown", bzImage("6.1", []byte("LZMA or so")), ErrFormat},
		{"truncated", bzImage("6.1", gz(want))[:2700], ErrFormat},
		{"no kernel", make([]byte, 10_000), ErrFormat},
		{"short", []byte("x"), ErrFormat},
		{"not an ELF file inside", bzImage("6.1", gz([]byte("hello, hello, hello"))), ErrFormat},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := write(t, filepath.Join(dir, "vmlinuz"), tt.file)
			out, err := Vmlinux(path, filepath.Join(dir, "kernels"))
			if !errors.Is(err, tt.wantErr) || err != nil && tt.wantErr == nil {
				t.Fatalf("error %v, want %v", err, tt.wantErr)
			}
			if err != nil {
				return
			}
			got, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Error("wrong bytes")
			}
			again, err := Vmlinux(path, filepath.Join(dir, "kernels"))
			if err != nil || again != out {
				t.Errorf("again: %s, %v", again, err)
			}
		})
	}
}

func FuzzUnpack(f *testing.F) {
	e := elfFile(18)
	f.Add(bzImage("6.1", gz(e)))
	f.Add(bzImage("6.1", withSize(zst(e), len(e))))
	f.Add(bzImage("6.1", withSize(lz4Stored(e), len(e))))
	f.Add(e)
	f.Fuzz(func(t *testing.T, b []byte) {
		version(bytes.NewReader(b))
		h, ok, err := readHeader(bytes.NewReader(b))
		if err != nil || !ok {
			checkPVH(bytes.NewReader(b))
			return
		}
		if bytes.Contains(b, []byte(xzMagic)) {
			return // another program's business
		}
		if p, err := unpack(b, h); err == nil {
			checkPVH(bytes.NewReader(p))
		}
	})
}

func TestFind(t *testing.T) {
	image := bzImage("6.1.0-7-cloud-amd64", gz(elfFile(18)))
	root := t.TempDir()
	dep := []byte("kernel/a.ko:\n")
	for _, v := range []string{"6.9.0", "6.10.0", "6.2.0"} {
		write(t, filepath.Join(root, "boot/vmlinuz-"+v), image)
		write(t, filepath.Join(root, "lib/modules", v, "modules.dep"), dep)
	}
	write(t, filepath.Join(root, "boot/vmlinuz-7.0"), image) // without modules
	write(t, filepath.Join(root, "boot/config-9.0"), nil)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "6.1.0-7-cloud-amd64/vmlinuz"), image)
	write(t, filepath.Join(dir, "6.1.0-7-cloud-amd64/modules/modules.dep"), dep)
	if err := os.Symlink("6.1.0-7-cloud-amd64", filepath.Join(dir, "default")); err != nil {
		t.Fatal(err)
	}
	unpacked := t.TempDir()
	write(t, filepath.Join(unpacked, "boot/vmlinuz"), image)
	write(t, filepath.Join(unpacked, "lib/modules/6.1.0-7-cloud-amd64/modules.dep"), dep)
	own := write(t, filepath.Join(t.TempDir(), "vmlinux"), elfFile(18))
	fetched := Kernel{
		Path: filepath.Join(dir, "6.1.0-7-cloud-amd64/vmlinuz"), Version: "6.1.0-7-cloud-amd64",
		ModuleDir: filepath.Join(dir, "6.1.0-7-cloud-amd64/modules"),
	}
	empty := t.TempDir()

	for _, tt := range []struct {
		name   string
		search Search
		want   Kernel
	}{
		{"given first", Search{Given: []string{own, dir}, Dir: dir, Root: root}, Kernel{Path: own}},
		{"given second", Search{Given: []string{"", filepath.Join(dir, "default")}, Dir: dir, Root: root}, fetched},
		{"default", Search{Given: []string{"", ""}, Dir: dir, Root: root}, fetched},
		{"boot", Search{Dir: empty, Root: root}, Kernel{
			Path: filepath.Join(root, "boot/vmlinuz-6.10.0"), Version: "6.10.0", ModuleDir: filepath.Join(root, "lib/modules/6.10.0"),
		}},
		{"modules beside boot", Search{Given: []string{filepath.Join(unpacked, "boot/vmlinuz")}, Root: root}, Kernel{
			Path: filepath.Join(unpacked, "boot/vmlinuz"), Version: "6.1.0-7-cloud-amd64",
			ModuleDir: filepath.Join(unpacked, "lib/modules/6.1.0-7-cloud-amd64"),
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Find(tt.search)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := Find(Search{Dir: empty, Root: empty}); !errors.Is(err, ErrNoKernel) {
		t.Errorf("nothing there: %v", err)
	}
	if _, err := Find(Search{Given: []string{filepath.Join(empty, "none")}, Dir: dir, Root: root}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("given one missing: %v", err)
	}
	list, def, err := List(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Kernel{fetched}, list); diff != "" || def != 0 {
		t.Error(def, diff)
	}
	if list, def, err := List(filepath.Join(empty, "none")); len(list) != 0 || def != -1 || err != nil {
		t.Error(list, def, err)
	}
}

func TestCompareVersions(t *testing.T) {
	sorted := []string{"", "5.10.0", "6.1", "6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.0-10-cloud-amd64", "6.10", "10.0"}
	for i, a := range sorted {
		for j, b := range sorted {
			if got, want := compareVersions(a, b), stdcmp.Compare(i, j); got != want {
				t.Errorf("compareVersions(%q, %q) = %d, want %d", a, b, got, want)
			}
		}
	}
}
