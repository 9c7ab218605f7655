package layer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math"

	"github.com/pexfs/pex/lazy/tree"
)

// An encoded index is: a magic, which has the version; source and format, a byte each; three tables, each after the number of
// its rows; the SHA-256 of all that. Numbers are variable-length integers. What follows from other rows isn't written:
//
//	entry    name, link target, type, mode, uid, gid, size, mtime, device, content, attributes
//	content  key, size, number of its chunks, offset in the spool in blocks from the end of the content before
//	chunk    digest, size, start from that of the chunk before, length of the member, offset in the member
const codecMagic = "pexlayer2"

var errCodec = errors.New("decoding a layer's index: it is damaged")

// What rows usually take, or a little more, in bytes.
const (
	usualEntry   = 26 // without what it has of variable length
	usualContent = 40
	usualChunk   = 44
)

// MarshalBinary encodes the index. Equal indexes have equal encodings.
func (ix *Index) MarshalBinary() ([]byte, error) { return ix.Pack().MarshalBinary() }

// MarshalBinary encodes the index, as Index.MarshalBinary does.
func (p *Packed) MarshalBinary() ([]byte, error) {
	e := encoder{b: make([]byte, 0, 64+len(p.entries)+usualContent*len(p.Contents)+usualChunk*len(p.Chunks)+sha256.Size)}
	e.b = append(append(e.b, codecMagic...), byte(p.Source), byte(p.Format))
	e.num(p.n)
	e.b = append(e.b, p.entries...)
	e.num(len(p.Contents))
	end := int64(0)
	for _, c := range p.Contents {
		e.b = append(e.b, c.Key[:]...)
		e.uint(uint64(c.Size))
		e.uint(uint64(c.Chunks))
		e.int(c.SpoolOff/blockSize - end)
		end = c.SpoolOff/blockSize + blocks(c.Size)
	}
	e.num(len(p.Chunks))
	start := int64(0)
	for _, c := range p.Chunks {
		e.b = append(e.b, c.Digest[:]...)
		e.uint(uint64(c.Size))
		e.int(c.Start - start)
		e.uint(uint64(c.End - c.Start))
		e.uint(uint64(c.Inner))
		start = c.Start
	}
	sum := sha256.Sum256(e.b)
	return append(e.b, sum[:]...), nil
}

func blocks(size int64) int64 { return (size-1)/blockSize + 1 }

type encoder struct{ b []byte }

func (e *encoder) uint(v uint64) { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)   { e.b = binary.AppendVarint(e.b, v) }
func (e *encoder) num(v int)     { e.uint(uint64(v)) }

func (e *encoder) str(s string) {
	e.num(len(s))
	e.b = append(e.b, s...)
}

func (e *encoder) entry(n *tree.Entry) {
	e.str(n.Name)
	e.str(n.Linkname)
	e.b = append(e.b, byte(n.Type))
	for _, v := range [...]uint32{n.Mode, n.UID, n.GID} {
		e.uint(uint64(v))
	}
	e.uint(uint64(n.Size))
	e.int(n.Mtime.Sec)
	e.uint(uint64(n.Mtime.Nsec))
	e.uint(uint64(n.Major))
	e.uint(uint64(n.Minor))
	e.uint(uint64(n.Content))
	e.num(len(n.Xattrs))
	for _, x := range n.Xattrs {
		e.str(x.Name)
		e.num(len(x.Value))
		e.b = append(e.b, x.Value...)
	}
}

// The least bytes that a row takes: they bound the number of rows by what is there.
const (
	minEntry   = 13
	minContent = 35
	minChunk   = 36
)

// UnmarshalBinary decodes what MarshalBinary made. It refuses what is damaged or doesn't hold together; ix is then
// unchanged. It keeps nothing of b.
func (ix *Index) UnmarshalBinary(b []byte) error {
	var p Packed
	if err := p.decode(b); err != nil {
		return err
	}
	entries := make([]tree.Entry, 0, p.n)
	for e, err := range p.Entries() {
		if err != nil {
			return err
		}
		entries = append(entries, e)
	}
	*ix = Index{Source: p.Source, Format: p.Format, Entries: entries, Contents: p.Contents, Chunks: p.Chunks}
	return nil
}

// UnmarshalBinary decodes what MarshalBinary made, as Index.UnmarshalBinary does, but for entries whose contents there are none of: Entries
// refuses them.
func (p *Packed) UnmarshalBinary(b []byte) error {
	if err := p.decode(b); err != nil {
		return err
	}
	p.entries = bytes.Clone(p.entries)
	return nil
}

// decode decodes b; the entries are a part of it.
func (p *Packed) decode(b []byte) error {
	body := b[:max(0, len(b)-sha256.Size)]
	if !bytes.HasPrefix(body, []byte(codecMagic)) || sha256.Sum256(body) != [32]byte(b[len(body):]) {
		return errCodec
	}
	d := decoder{b: body[len(codecMagic):]}
	got := Packed{Source: Source(d.within(uint64(FromTOC))), Format: Format(d.within(uint64(Zstd))), n: d.rows(minEntry)}
	table := d.b
	for range got.n {
		if d.entry(&tree.Entry{}, nil); d.bad {
			return errCodec
		}
	}
	got.entries = table[:len(table)-len(d.b)]
	got.Contents = make([]Content, d.rows(minContent))
	var chunks, end int64
	for i := range got.Contents {
		c := &got.Contents[i]
		copy(c.Key[:], d.bytes(32))
		c.Size = int64(d.within(math.MaxInt64))
		c.FirstChunk, c.Chunks = uint32(chunks), uint32(d.within(math.MaxUint32-uint64(chunks)))
		chunks += int64(c.Chunks)
		at := end + d.int()
		if c.Size == 0 || at < 0 || at > math.MaxInt64/blockSize-blocks(c.Size) {
			return errCodec
		}
		c.SpoolOff, end = at*blockSize, at+blocks(c.Size)
	}
	got.Chunks = make([]Chunk, d.rows(minChunk))
	start := int64(0)
	for i := range got.Chunks {
		c := &got.Chunks[i]
		copy(c.Digest[:], d.bytes(32))
		c.Size = int64(d.within(maxChunk))
		c.Start = start + d.int()
		length := int64(d.within(math.MaxInt64))
		c.Inner = int64(d.within(maxMember))
		if c.Size == 0 || c.Start < 0 || length == 0 || length > math.MaxInt64-c.Start {
			return errCodec
		}
		c.End, start = c.Start+length, c.Start
	}
	if d.bad || len(d.b) != 0 || chunks != int64(len(got.Chunks)) || !got.placeChunks() {
		return errCodec
	}
	*p = got
	return nil
}

// placeChunks gives chunks their places in contents, and tells whether they are as large.
func (p *Packed) placeChunks() bool {
	for _, c := range p.Contents {
		off := int64(0)
		for i := c.FirstChunk; i < c.FirstChunk+c.Chunks; i++ {
			p.Chunks[i].Off = off
			off += p.Chunks[i].Size
		}
		if p.Source == FromTOC && off != c.Size || p.Source == FromTar && off != 0 {
			return false
		}
	}
	return true
}

// decoder reads until something is wrong, and remembers that.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) fail() {
	d.b, d.bad = nil, true
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// within reads a number up to most.
func (d *decoder) within(most uint64) uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > most {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// rows reads the number of rows of a table, each of which takes least bytes or more.
func (d *decoder) rows(least int) int { return int(d.within(uint64(len(d.b) / least))) }

// bytes gives the next n bytes, or none at all.
func (d *decoder) bytes(n int) []byte {
	if n > len(d.b) {
		d.fail()
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) sized() []byte { return d.bytes(int(d.within(uint64(len(d.b))))) }

// entry reads an entry; its name and link target are of text. Without text, strings and attributes are only gone over.
func (d *decoder) entry(e *tree.Entry, text *arena) {
	const max32 = math.MaxUint32
	name, link := d.sized(), d.sized()
	e.Type = tree.Type(d.within(uint64(tree.Fifo)))
	e.Mode, e.UID, e.GID = uint32(d.within(0o7777)), uint32(d.within(max32)), uint32(d.within(max32))
	e.Size = int64(d.within(math.MaxInt64))
	e.Mtime = tree.Time{Sec: d.int(), Nsec: uint32(d.within(999_999_999))}
	e.Major, e.Minor = uint32(d.within(max32)), uint32(d.within(max32))
	e.Content = int32(d.within(math.MaxInt32))
	n := d.rows(2)
	if text == nil {
		for range 2 * n {
			d.sized()
		}
		return
	}
	e.Name, e.Linkname = text.string(name), text.string(link)
	if n > 0 {
		e.Xattrs = make([]tree.Xattr, n)
		for i := range e.Xattrs {
			e.Xattrs[i] = tree.Xattr{Name: string(d.sized()), Value: bytes.Clone(d.sized())}
		}
	}
}
