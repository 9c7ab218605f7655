package layer

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math"

	"github.com/pexfs/pex/lazy/tree"
)

const codecMagic = "pexlayer1"

var errCodec = errors.New("the layer's index is damaged")

// MarshalBinary encodes the index: a magic, the entries, contents and chunks in variable-length integers, and the SHA-256
// of all of it.
func (ix *Index) MarshalBinary() ([]byte, error) {
	e := encoder{b: append(make([]byte, 0, 128*len(ix.Entries)), codecMagic...)}
	e.b = append(e.b, byte(ix.Source), byte(ix.Format))
	e.num(int64(len(ix.Entries)))
	for _, n := range ix.Entries {
		e.str(n.Name)
		e.str(n.Linkname)
		e.b = append(e.b, byte(n.Type))
		for _, v := range [...]int64{int64(n.Mode), int64(n.UID), int64(n.GID), n.Size, n.Mtime.Sec, int64(n.Mtime.Nsec), int64(n.Major), int64(n.Minor), int64(n.Content), int64(len(n.Xattrs))} {
			e.num(v)
		}
		for _, x := range n.Xattrs {
			e.str(x.Name)
			e.str(string(x.Value))
		}
	}
	e.num(int64(len(ix.Contents)))
	for _, c := range ix.Contents {
		e.b = append(e.b, c.Key[:]...)
		for _, v := range [...]int64{c.Size, int64(c.FirstChunk), int64(c.Chunks), c.SpoolOff} {
			e.num(v)
		}
	}
	e.num(int64(len(ix.Chunks)))
	for _, c := range ix.Chunks {
		e.b = append(e.b, c.Digest[:]...)
		for _, v := range [...]int64{c.Off, c.Size, c.Start, c.End, c.Inner} {
			e.num(v)
		}
	}
	h := sha256.Sum256(e.b)
	return append(e.b, h[:]...), nil
}

type encoder struct{ b []byte }

func (e *encoder) num(v int64)  { e.b = binary.AppendVarint(e.b, v) }
func (e *encoder) str(s string) { e.num(int64(len(s))); e.b = append(e.b, s...) }

// decoder reads until something is wrong, and remembers that.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) num() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

// within reads a number that must lie between 0 and most.
func (d *decoder) within(most int64) int64 {
	v := d.num()
	if v < 0 || v > most {
		d.bad, d.b = true, nil
		return 0
	}
	return v
}

func (d *decoder) bytes(n int64) []byte {
	if n > int64(len(d.b)) {
		d.bad, d.b = true, nil
		return make([]byte, min(n, 64))
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) str() string { return string(d.bytes(d.within(int64(len(d.b))))) }

// UnmarshalBinary decodes what MarshalBinary made and checks that its numbers hold together.
func (ix *Index) UnmarshalBinary(b []byte) error {
	if len(b) < len(codecMagic)+2+sha256.Size || string(b[:len(codecMagic)]) != codecMagic {
		return errCodec
	}
	body := b[:len(b)-sha256.Size]
	if sha256.Sum256(body) != [32]byte(b[len(body):]) {
		return errCodec
	}
	d := decoder{b: body[len(codecMagic):]}
	kind := d.bytes(2)
	*ix = Index{Source: Source(kind[0]), Format: Format(kind[1])}
	if ix.Source > FromTOC || ix.Format > Zstd {
		return errCodec
	}
	// no entry takes less than 13 bytes, no content less than 36, no chunk less than 37: counts are bounded by what is there
	n := d.within(int64(len(d.b)) / 13)
	ix.Entries = make([]tree.Entry, n)
	for i := range ix.Entries {
		e := &ix.Entries[i]
		e.Name, e.Linkname = d.str(), d.str()
		e.Type = tree.Type(d.bytes(1)[0])
		e.Mode, e.UID, e.GID = uint32(d.within(0o7777)), uint32(d.within(math.MaxUint32)), uint32(d.within(math.MaxUint32))
		e.Size = d.within(math.MaxInt64)
		e.Mtime.Sec, e.Mtime.Nsec = d.num(), uint32(d.within(999_999_999))
		e.Major, e.Minor = uint32(d.within(math.MaxUint32)), uint32(d.within(math.MaxUint32))
		e.Content = int32(d.within(math.MaxInt32))
		if x := d.within(int64(len(d.b)) / 2); x > 0 {
			e.Xattrs = make([]tree.Xattr, x)
			for k := range e.Xattrs {
				e.Xattrs[k] = tree.Xattr{Name: d.str(), Value: []byte(d.str())}
			}
		}
		if e.Type > tree.Fifo {
			d.bad = true
		}
		if d.bad {
			return errCodec
		}
	}
	ix.Contents = make([]Content, d.within(int64(len(d.b))/36))
	for i := range ix.Contents {
		c := &ix.Contents[i]
		c.Key = Key(d.bytes(32))
		c.Size = d.within(math.MaxInt64)
		c.FirstChunk, c.Chunks = uint32(d.within(math.MaxUint32)), uint32(d.within(math.MaxUint32))
		c.SpoolOff = d.within(math.MaxInt64)
	}
	ix.Chunks = make([]Chunk, d.within(int64(len(d.b))/37))
	for i := range ix.Chunks {
		c := &ix.Chunks[i]
		c.Digest = [32]byte(d.bytes(32))
		for _, v := range [...]*int64{&c.Off, &c.Size, &c.Start, &c.End, &c.Inner} {
			*v = d.within(math.MaxInt64)
		}
	}
	if d.bad || len(d.b) != 0 {
		return errCodec
	}
	for _, e := range ix.Entries {
		if e.Type == tree.Regular && e.Size > 0 && (int(e.Content) >= len(ix.Contents) || ix.Contents[e.Content].Size != e.Size) {
			return errCodec
		}
	}
	for _, c := range ix.Contents {
		if int64(c.FirstChunk)+int64(c.Chunks) > int64(len(ix.Chunks)) || c.SpoolOff%blockSize != 0 {
			return errCodec
		}
	}
	return nil
}
