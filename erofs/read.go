package erofs

import (
	"fmt"
	"io"
	"io/fs"

	"github.com/pexfs/pex/erofs/disk"
)

// ReadFileAt reads len(p) bytes of a regular file's content from its byte off on, as an io.ReaderAt does: fewer only with an
// error, io.EOF at the content's end. It may be called concurrently.
func (im *Image) ReadFileAt(in Inode, p []byte, off int64) (int, error) {
	switch {
	case !in.IsRegular():
		return 0, fmt.Errorf("inode %d: not a regular file: %w", in.Nid, fs.ErrInvalid)
	case off < 0:
		return 0, fmt.Errorf("inode %d: offset %d: %w", in.Nid, off, fs.ErrInvalid)
	case off >= in.Size:
		return 0, io.EOF
	}
	atEnd := int64(len(p)) > in.Size-off
	if atEnd {
		p = p[:in.Size-off]
	}
	var n int
	var err error
	switch in.layout {
	case disk.LayoutPlain, disk.LayoutInline:
		n, err = im.readFlat(in, p, off)
	case disk.LayoutFull, disk.LayoutCompact:
		n, err = im.readCompressed(in, p, off)
	default:
		err = fmt.Errorf("%w: data layout %d", ErrUnsupported, in.layout)
	}
	if err != nil {
		return n, fmt.Errorf("reading inode %d: %w", in.Nid, err)
	}
	if atEnd {
		err = io.EOF
	}
	return n, err
}

// readFlat reads data that lies in consecutive blocks, but for its end where that is inline. All of p lies within it.
func (im *Image) readFlat(in Inode, p []byte, off int64) (int, error) {
	n := 0
	if split := in.Size - in.inlineSize(); off < split {
		n = int(min(int64(len(p)), split-off))
		if err := im.read(p[:n], in.offset(off)); err != nil {
			return 0, err
		}
	}
	if n < len(p) {
		if err := im.read(p[n:], in.offset(off+int64(n))); err != nil {
			return n, err
		}
	}
	return len(p), nil
}
