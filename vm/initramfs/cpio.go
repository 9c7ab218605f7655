package initramfs

import (
	"fmt"
	"io"
)

// archive writes a cpio in the format "newc". All entries belong to root and have no time. After an error it writes
// nothing more.
type archive struct {
	w   io.Writer
	ino uint32
	off int64
	err error
}

const (
	typeDir  = 0o040000
	typeChar = 0o020000
	typeFile = 0o100000
)

func (a *archive) dir(name string) { a.entry(name, typeDir|0o755, 2, 0, 0, nil) }

func (a *archive) file(name string, perm uint32, data []byte) {
	a.entry(name, typeFile|perm, 1, 0, 0, data)
}

func (a *archive) node(name string, perm, major, minor uint32) {
	a.entry(name, typeChar|perm, 1, major, minor, nil)
}

// entry writes a header, the name with a NUL, and the data, each padded to 4 bytes.
func (a *archive) entry(name string, mode, nlink, major, minor uint32, data []byte) {
	if int64(len(data)) > 1<<32-1 {
		a.err = fmt.Errorf("writing boot archive: %s has %d bytes", name, len(data))
	}
	a.ino++
	a.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.ino, mode, 0, 0, nlink, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name), 4)
	a.write(data, 4)
}

// close writes the end, and fills up the last block of 512 bytes.
func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, 1, 0, 0, nil)
	a.write(nil, 512)
	return a.err
}

// write writes b, then zeros up to a multiple of align.
func (a *archive) write(b []byte, align int64) {
	if a.err != nil {
		return
	}
	a.off += int64(len(b))
	pad := -a.off & (align - 1)
	a.off += pad
	if _, a.err = a.w.Write(b); a.err == nil && pad > 0 {
		_, a.err = a.w.Write(make([]byte, pad))
	}
}
