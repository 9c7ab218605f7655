package erofs

import (
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/pexfs/pex/erofs/disk"
	"github.com/pexfs/pex/lazy/tree"
)

// LayoutVersion is that of the rules in the package comment. Images of different versions have different bytes.
const LayoutVersion = 1

const (
	blockSize = disk.BlockSize
	hugeSize  = 2 << 20 // data begins here, big contents are aligned to it, and so is the image's size
	rootNid   = 1
	maxBlocks = math.MaxUint32
	maxMeta   = 16 << 30 // bytes of metadata: it is built in memory, and nids of it fit 32 bits
)

// ErrTooBig is wrapped where a tree or a file of it is more than the format or this package takes.
var ErrTooBig = errors.New("too big for EROFS")

// Extent is the place of a content in the image; Off and Size are bytes.
type Extent struct {
	Content   tree.Content
	Off, Size int64
}

// Layout is the plan of an image and its metadata. It never changes and may be used concurrently.
type Layout struct {
	size, metaOff int64
	extents       []Extent
	super         []byte // block 0
	meta          []byte // whole blocks
	dropped       []string
}

// Size is the whole image's, in bytes: a multiple of 2 MiB.
func (l *Layout) Size() int64 { return l.size }

// MetaOffset is where metadata begins; from there to the end there is nothing else, but for zeros.
func (l *Layout) MetaOffset() int64 { return l.metaOff }

// Extents lists where contents go, by ascending offset, each distinct content once. The caller must not change it.
func (l *Layout) Extents() []Extent { return l.extents }

// Dropped lists the attributes that were left out because EROFS has no number for their prefix, as "path: name". After 100 of
// them one line counts the others.
func (l *Layout) Dropped() []string { return l.dropped }

// WriteTo writes the metadata and then the superblock's block, whole blocks each. All else of the file must read as zeros, but
// for the contents.
func (l *Layout) WriteTo(w io.WriterAt) error {
	const step = 4 << 20
	for off := 0; off < len(l.meta); off += step {
		if _, err := w.WriteAt(l.meta[off:min(off+step, len(l.meta))], l.metaOff+int64(off)); err != nil {
			return fmt.Errorf("writing metadata: %w", err)
		}
	}
	if _, err := w.WriteAt(l.super, 0); err != nil {
		return fmt.Errorf("writing superblock: %w", err)
	}
	return nil
}

// NewLayout lays out a tree. Contents with equal keys are the same bytes and are stored once. The result is a pure
// function of the arguments. An error that a file is the cause of names its path; one about sizes wraps ErrTooBig.
//
// Of extended attributes, those of user, trusted and security and the two POSIX ACLs are kept; see Layout.Dropped.
func NewLayout(t *tree.Tree, key func(tree.Content) [32]byte, uuid [16]byte) (*Layout, error) {
	w := &writer{t: t, l: &Layout{}}
	if err := w.placeContents(key); err != nil {
		return nil, fmt.Errorf("laying out contents: %w", err)
	}
	if err := w.placeInodes(); err != nil {
		return nil, fmt.Errorf("laying out inodes: %w", err)
	}
	w.encodeInodes()
	w.encodeSuper(uuid)
	return w.l, nil
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }
