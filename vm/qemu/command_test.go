package qemu

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pexfs/pex/vm"
)

var update = flag.Bool("update", false, "write the golden files")

func TestCommand(t *testing.T) {
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	hashes, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer hashes.Close()
	base := vm.Spec{
		Accel: vm.TCG, VCPUs: 1, Memory: 512 << 20,
		Kernel: "/boot set/vmlinux", Initrd: "/boot set/initramfs", Cmdline: []string{"pex.root=x"},
	}
	with := func(f func(*vm.Spec)) vm.Spec {
		s := base
		f(&s)
		return s
	}
	tests := []struct {
		name     string
		firmware string
		spec     vm.Spec
	}{
		{"virtiofs", "", with(func(s *vm.Spec) { s.Rootfs = vm.VirtioFS{Tag: "root", Conn: file} })},
		{"block", "", with(func(s *vm.Spec) { s.Rootfs = vm.Block{Conn: file} })},
		{"pmem", "/fw/qboot.rom", with(func(s *vm.Spec) { s.Rootfs = vm.Pmem{File: file, Size: 410 << 20} })},
		{"kvm", "/fw/qboot.rom", with(func(s *vm.Spec) {
			s.Accel, s.VCPUs, s.Memory = vm.KVM, 4, 8<<30
			s.Rootfs = vm.VirtioFS{Tag: "root", Conn: file}
		})},
		{"verity", "", with(func(s *vm.Spec) { s.Rootfs = vm.Verity{Data: file, Hash: hashes} })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			q := &QEMU{path: "/usr/bin/qemu-system-x86_64", firmware: tt.firmware}
			argv, files, err := q.Command(tt.spec)
			if err != nil {
				t.Fatal(err)
			}
			want := []*os.File{nil, nil, file} // two channels and the root
			if _, ok := tt.spec.Rootfs.(vm.Verity); ok {
				want = append(want, hashes)
			}
			if !slices.Equal(files, want) {
				t.Errorf("files = %v, want %v", files, want)
			}
			got := strings.Join(argv, "\n") + "\n"
			golden := filepath.Join("testdata", tt.name+".argv")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			wantArgs, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(wantArgs), got); diff != "" {
				t.Errorf("command line (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCommandRefuses(t *testing.T) {
	if _, _, err := (&QEMU{}).Command(vm.Spec{}); err == nil {
		t.Error("an empty Spec was taken")
	}
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]string{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright": "7.2.22",
		"QEMU emulator version 10.0.2":                                  "10.0.2",
		"something else":                                                "",
		"":                                                              "",
	} {
		if got := parseVersion(text); got != want {
			t.Errorf("parseVersion(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestFindNothing(t *testing.T) {
	_, err := Find(Options{Path: filepath.Join(t.TempDir(), "none")})
	if !errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("Find() = %v, want %v", err, vm.ErrUnavailable)
	}
}

// A program that isn't QEMU, or one that ends at once, is told apart from a machine.
func TestStartFails(t *testing.T) {
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	script := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho no such machine >&2\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	q, err := Find(Options{Path: script})
	if err != nil {
		t.Fatal(err)
	}
	_, err = q.Start(t.Context(), vm.Spec{
		Accel: vm.TCG, VCPUs: 1, Memory: 512 << 20, Kernel: "/k", Initrd: "/i",
		Rootfs: vm.Pmem{File: file, Size: vm.PmemAlign},
	})
	if err == nil || !strings.Contains(err.Error(), "no such machine") {
		t.Errorf("Start() = %v", err)
	}
}
