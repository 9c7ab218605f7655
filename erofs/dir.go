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

// dirBlock is one checked block of a directory.
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
	bad := func() (dirBlock, error) {
		return dirBlock{}, fmt.Errorf("%w: directory %d, block %d", ErrInvalid, in.Nid, k)
	}
	if len(b) < disk.DirentSize {
		return bad()
	}
	var d disk.Dirent
	d.Decode(b)
	if d.NameOff < disk.DirentSize || d.NameOff%disk.DirentSize != 0 || int(d.NameOff) > len(b) {
		return bad()
	}
	db := dirBlock{b, int(d.NameOff) / disk.DirentSize}
	last := int(d.NameOff)
	for i := range db.n {
		d.Decode(b[i*disk.DirentSize:])
		if int(d.NameOff) < last || int(d.NameOff) > len(b) || i > 0 && int(d.NameOff) == last {
			return bad()
		}
		last = int(d.NameOff)
	}
	if len(db.name(db.n-1)) == 0 {
		return bad()
	}
	for i := range db.n {
		if n := db.name(i); len(n) > disk.MaxName || bytes.IndexByte(n, '/') >= 0 || bytes.IndexByte(n, 0) >= 0 {
			return bad()
		}
	}
	return db, nil
}

func (d dirBlock) entry(i int) (e disk.Dirent) {
	e.Decode(d.b[i*disk.DirentSize:])
	return e
}

// name gives a name; that of a block's last entry ends with the block or a zero.
func (d dirBlock) name(i int) []byte {
	from := int(d.entry(i).NameOff)
	if i+1 < d.n {
		return d.b[from:int(d.entry(i+1).NameOff)]
	}
	n := d.b[from:]
	if z := bytes.IndexByte(n, 0); z >= 0 {
		n = n[:z]
	}
	return n
}

// Lookup finds a name in a directory, by bisection. The error wraps fs.ErrNotExist where there is none.
func (im *Image) Lookup(dir Inode, name string) (nid uint64, err error) {
	if !dir.IsDir() {
		return 0, fmt.Errorf("inode %d: %w", dir.Nid, ErrNotDir)
	}
	buf := blockPool.Get().(*[blockSize]byte)
	defer blockPool.Put(buf)
	lo, hi := int64(0), (dir.Size+blockSize-1)/blockSize
	for lo < hi {
		mid := lo + (hi-lo)/2
		b, err := im.dirBlock(dir, mid, buf)
		if err != nil {
			return 0, err
		}
		if name < string(b.name(0)) {
			hi = mid
			continue
		}
		if name > string(b.name(b.n-1)) {
			lo = mid + 1
			continue
		}
		i, j := 0, b.n
		for i < j {
			m := (i + j) / 2
			if string(b.name(m)) < name {
				i = m + 1
			} else {
				j = m
			}
		}
		if i < b.n && string(b.name(i)) == name {
			return b.entry(i).Nid, nil
		}
		break
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
			e := b.entry(i)
			d := Dirent{Name: b.name(i), Nid: e.Nid, Next: uint64(k)*blockSize + uint64(i) + 1}
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
