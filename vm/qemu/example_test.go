package qemu_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/pexfs/pex/vm"
	"github.com/pexfs/pex/vm/qemu"
)

// A machine whose root is an image in a file.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	q, err := qemu.Find(qemu.Options{Console: os.Stderr})
	if err != nil {
		log.Fatal(err)
	}
	image, err := os.Open("image.erofs")
	if err != nil {
		log.Fatal(err)
	}
	defer image.Close()
	m, err := q.Start(ctx, vm.Spec{
		Accel: vm.TCG, VCPUs: 1, Memory: 512 << 20,
		Kernel: "/boot/vmlinux", Initrd: "/boot/initramfs",
		Rootfs: vm.Pmem{File: image, Size: 64 << 20},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Port().Close() // a stream to and from PID 1: see vm/guest
	fmt.Println(m.Wait().Cause)
}
