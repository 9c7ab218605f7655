package vm

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCheck(t *testing.T) {
	file := os.Stdin
	good := Spec{
		Accel: TCG, VCPUs: 1, Memory: 512 << 20, Kernel: "/k", Initrd: "/i",
		Cmdline: []string{"a=b"}, Rootfs: Pmem{File: file, Size: 2 << 20},
	}
	tests := []struct {
		name   string
		change func(*Spec)
		want   string // part of the error; empty: none
	}{
		{"good", func(*Spec) {}, ""},
		{"virtio-fs", func(s *Spec) { s.Rootfs = VirtioFS{Tag: "t", Conn: file} }, ""},
		{"no accelerator", func(s *Spec) { s.Accel = "" }, "accelerator"},
		{"no processor", func(s *Spec) { s.VCPUs = 0 }, "processors"},
		{"too many processors", func(s *Spec) { s.VCPUs = 256 }, "processors"},
		{"little memory", func(s *Spec) { s.Memory = 1 << 20 }, "memory"},
		{"negative memory", func(s *Spec) { s.Memory = -1 << 20 }, "memory"},
		{"odd memory", func(s *Spec) { s.Memory++ }, "memory"},
		{"relative kernel", func(s *Spec) { s.Kernel = "k" }, "absolute"},
		{"comma in a path", func(s *Spec) { s.Initrd = "/a,b" }, "commas"},
		{"space in a parameter", func(s *Spec) { s.Cmdline = []string{"a b"} }, "parameter"},
		{"no root", func(s *Spec) { s.Rootfs = nil }, "no root"},
		{"odd pmem", func(s *Spec) { s.Rootfs = Pmem{File: file, Size: 1 << 20} }, "multiple"},
		{"pmem without file", func(s *Spec) { s.Rootfs = Pmem{Size: 2 << 20} }, "without a file"},
		{"verity", func(s *Spec) { s.Rootfs = Verity{Data: file, Hash: file} }, ""},
		{"verity without data", func(s *Spec) { s.Rootfs = Verity{Hash: file} }, "without an image"},
		{"verity without hashes", func(s *Spec) { s.Rootfs = Verity{Data: file} }, "or its hashes"},
		{"disk", func(s *Spec) { s.Rootfs = Block{Conn: file} }, ""},
		{"disk without socket", func(s *Spec) { s.Rootfs = Block{} }, "without a connection"},
		{"virtio-fs without socket", func(s *Spec) { s.Rootfs = VirtioFS{Tag: "t"} }, "without a connection"},
		{"virtio-fs with a long tag", func(s *Spec) { s.Rootfs = VirtioFS{Tag: strings.Repeat("t", 37), Conn: file} }, "tag"},
		{"virtio-fs with an option in its tag", func(s *Spec) { s.Rootfs = VirtioFS{Tag: "t,x=y", Conn: file} }, "tag"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := good
			tt.change(&s)
			err := s.Check()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("Check() = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestTail(t *testing.T) {
	tail := NewTail(19)
	for _, s := range []string{"lost ", "first line\n", "\x1b[31mred\n\n", "last\tone"} {
		tail.Write([]byte(s))
	}
	if got, want := tail.String(), "\n\x1b[31mred\n\nlast\tone"; got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
	if diff := cmp.Diff([]string{"[31mred", "last one"}, tail.Lines(5)); diff != "" {
		t.Errorf("Lines(5) (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"last one"}, tail.Lines(1)); diff != "" {
		t.Errorf("Lines(1) (-want +got):\n%s", diff)
	}
	tail.Write([]byte(strings.Repeat("y", 50)))
	if got, want := tail.String(), strings.Repeat("y", 19); got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
}
