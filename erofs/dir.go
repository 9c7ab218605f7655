package erofs

import (
	"bytes"
	"fmt"
	"io/fs"

	"github.com/pexfs/pex/erofs/disk"
)

// Dirent is a name in a directory. Name is valid only during the call that got it.
type Dirent struct {
	Name []byte
	Nid  uint64
	Type uint8  // as d_type of readdir(3)
	Next uint64 // where reading resumes behind this name
}

// dirTypes are d_type values by the type in a directory entry.
var dirTypes = [...]uint8{disk.TypeRegular: 8, disk.TypeDir: 4, disk.TypeChar: 2, disk.TypeBlock: 6, disk.TypeFifo: 1, disk.TypeSocket: 12, disk.TypeSymlink: 10}

// dirBlock is one block of a directory, or what of its last one is used. Its names are checked as they are read.
type dirBlock struct {
	b []byte
	n int // entries
}

// dirBlock reads block k of a directory into buf.
func (im *Image) dirBlock(in Inode, k int64, buf *[blockSize]byte) (dirBlock, error) {
	b := buf[:min(blockSize, in.Size-k*blockSize)]
	if err := im.read(b, in.offset(k*blockSize)); err != nil {
		return dirBlock{}, fmt.Errorf("reading directory %d: %w", in.Nid, err)
	}
	if len(b) < disk.DirentSize {
		return dirBlock{}, badBlock(in, k)
	}
	var d disk.Dirent
	d.Decode(b) // the first name begins behind the last entry
	if d.NameOff < disk.DirentSize || d.NameOff%disk.DirentSize != 0 || int(d.NameOff) > len(b) {
		return dirBlock{}, badBlock(in, k)
	}
	return dirBlock{b, int(d.NameOff) / disk.DirentSize}, nil
}

func badBlock(in Inode, k int64) error {
	return fmt.Errorf("%w: directory %d, block %d", ErrInvalid, in.Nid, k)
}

func (d dirBlock) entry(i int) (e disk.Dirent) {
	e.Decode(d.b[i*disk.DirentSize:])
	return e
}

// name gives a name, or false if it is none that a directory may have. The last one ends with the block or a zero.
func (d dirBlock) name(i int) ([]byte, bool) {
	from, to := int(d.entry(i).NameOff), len(d.b)
	if i+1 < d.n {
		to = int(d.entry(i + 1).NameOff)
	}
	if from < d.n*disk.DirentSize || from >= to || to > len(d.b) {
		return nil, false
	}
	n := d.b[from:to]
	if z := bytes.IndexByte(n, 0); z >= 0 && i+1 == d.n {
		n = n[:z]
	} else if z >= 0 {
		return nil, false
	}
	return n, len(n) > 0 && len(n) <= disk.MaxName && bytes.IndexByte(n, '/') < 0
}

// Lookup finds a name in a directory, by bisection. The error wraps fs.ErrNotExist where there is none.
func (im *Image) Lookup(dir Inode, name string) (nid uint64, err error) {
	if !dir.IsDir() {
		return 0, fmt.Errorf("inode %d: %w", dir.Nid, ErrNotDir)
	}
	buf := blockPool.Get().(*[blockSize]byte)
	defer blockPool.Put(buf)
	for lo, hi := int64(0), (dir.Size+blockSize-1)/blockSize; lo < hi; {
		k := lo + (hi-lo)/2
		b, err := im.dirBlock(dir, k, buf)
		if err != nil {
			return 0, err
		}
		first, ok := b.name(0)
		if !ok {
			return 0, badBlock(dir, k)
		}
		if name < string(first) {
			hi = k
			continue
		}
		for i, j := 0, b.n; i < j; {
			m := i + (j-i)/2
			n, ok := b.name(m)
			switch {
			case !ok:
				return 0, badBlock(dir, k)
			case string(n) == name:
				return b.entry(m).Nid, nil
			case string(n) < name:
				i = m + 1
			default:
				j = m
			}
		}
		if last, ok := b.name(b.n - 1); !ok {
			return 0, badBlock(dir, k)
		} else if name < string(last) {
			break // it would be here
		}
		lo = k + 1
	}
	return 0, fs.ErrNotExist
}

// ReadDir calls f for the names of a directory, from the offset off on (0, or a Dirent's Next), "." and ".." among them, until f
// returns false.
func (im *Image) ReadDir(dir Inode, off uint64, f func(Dirent) bool) error {
	if !dir.IsDir() {
		return fmt.Errorf("inode %d: %w", dir.Nid, ErrNotDir)
	}
	buf := blockPool.Get().(*[blockSize]byte)
	defer blockPool.Put(buf)
	// an offset is a block's number and an entry's in it
	blocks := (dir.Size + blockSize - 1) / blockSize
	for k, i := int64(off/blockSize), int(off%blockSize); k < blocks; k, i = k+1, 0 {
		b, err := im.dirBlock(dir, k, buf)
		if err != nil {
			return err
		}
		for ; i < b.n; i++ {
			name, ok := b.name(i)
			if !ok {
				return badBlock(dir, k)
			}
			e := b.entry(i)
			d := Dirent{Name: name, Nid: e.Nid, Next: uint64(k)*blockSize + uint64(i) + 1}
			if int(e.Type) < len(dirTypes) {
				d.Type = dirTypes[e.Type]
			}
			if !f(d) {
				return nil
			}
		}
	}
	return nil
}
