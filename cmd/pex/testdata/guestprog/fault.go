package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	page     = 4 << 10
	hugePage = 2 << 20
)

// countFaults maps a file twice, at a multiple of 2 MiB and then a page behind one, touches all of its pages and says
// how many faults that took.
func countFaults(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	size := uintptr(st.Size())
	debug.SetGCPercent(-1) // its faults would count too
	for _, way := range []struct {
		name  string
		shift uintptr
	}{{"aligned", 0}, {"shifted", page}} {
		room, err := unix.MmapPtr(-1, 0, nil, size+2*hugePage, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return err
		}
		at := unsafe.Add(room, -uintptr(room)&(hugePage-1)+way.shift)
		if _, err := unix.MmapPtr(int(f.Fd()), 0, at, size, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
			return err
		}
		before, err := faults()
		if err != nil {
			return err
		}
		touch(unsafe.Slice((*byte)(at), size))
		after, err := faults()
		if err != nil {
			return err
		}
		fmt.Println(way.name, after-before)
	}
	return nil
}

//go:noinline
func touch(b []byte) (sum byte) {
	for i := 0; i < len(b); i += page {
		sum += b[i]
	}
	return sum
}

// faults is how many page faults this process has had.
func faults() (int64, error) {
	var u unix.Rusage
	err := unix.Getrusage(unix.RUSAGE_SELF, &u)
	return u.Minflt + u.Majflt, err
}
