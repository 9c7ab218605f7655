package vhostuser_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/pexfs/pex/vm/vhostuser"
)

// download is a disk whose bytes arrive while it is read.
type download struct {
	file *os.File
	size int64
	wait func(ctx context.Context, off, n int64) error // until these bytes are in file
}

func (d download) Size() int64 { return d.size }

func (d download) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := d.wait(ctx, off, int64(len(p))); err != nil {
		return 0, err
	}
	return d.file.ReadAt(p, off)
}

// A machine whose guest has a disk, /dev/vda, that need not be there yet. How QEMU gets its end of conn, and its memory, is
// as with ServeFS; its device is
//
//	-device vhost-user-blk-pci,chardev=root,num-queues=1,queue-size=128
func ExampleServeBlock() {
	run := func(ctx context.Context, conn *net.UnixConn, d download) error {
		return vhostuser.ServeBlock(ctx, conn, d, "an-id", vhostuser.Options{})
	}
	_ = run
}

// A machine whose guest can mount "root", a file system of this process. QEMU has its end of the socket as
// descriptor 3; its memory is a sealed memfd, as it must be.
func ExampleServeFS() {
	run := func(ctx context.Context, fs fuse.RawFileSystem) error {
		pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("making socketpair: %w", err)
		}
		ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
		conn, err := net.FileConn(ours)
		ours.Close()
		if err != nil {
			theirs.Close()
			return fmt.Errorf("opening socket: %w", err)
		}
		qemu := exec.CommandContext(ctx, "qemu-system-x86_64", "-M", "q35,memory-backend=mem", "-m", "1G",
			"-object", "memory-backend-memfd,id=mem,size=1G,share=on",
			"-chardev", "socket,id=root,fd=3",
			"-device", "vhost-user-fs-pci,chardev=root,tag=root,queue-size=1024",
			"-kernel", "vmlinux")
		qemu.ExtraFiles = []*os.File{theirs}
		err = qemu.Start()
		theirs.Close() // or the end of QEMU would not be seen
		if err != nil {
			conn.Close()
			return fmt.Errorf("starting QEMU: %w", err)
		}
		serveErr := vhostuser.ServeFS(ctx, conn.(*net.UnixConn), "root", fs, nil, vhostuser.Options{})
		if err := qemu.Wait(); err != nil {
			return fmt.Errorf("running QEMU: %w", err)
		}
		return serveErr
	}
	_ = run
}
