package lazy

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"sort"

	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/store"
)

// A plan says where an image's contents lie and which chunks of which layers they are made from. It is kept beside the
// image, so that filling goes on after a restart with nothing fetched but chunks. Little endian:
//
//	magic, counts of extents and chunks (8 bytes each)
//	extents, ascending offset: offset, size, key, first chunk, number of chunks, layer   (64 bytes each)
//	chunks: offset in the content, size, start, end, inner offset, digest               (72 bytes each)
//	SHA-256 of all before it
const (
	planMagic  = "pexplan1"
	planHeader = 24
	extentSize = 64
	chunkSize  = 72
)

// extent is the place of one content in the image.
type extent struct {
	off, size     int64
	key           layer.Key
	first, chunks uint32
	layer         uint32 // index in the image's layers, bottom first
}

type plan struct {
	b       []byte
	extents int
	chunks  int
}

var errPlan = fmt.Errorf("%w: it can't be completed", store.ErrDamaged)

// planWriter writes a plan in its place, which takes most memory of what an opening needs at once.
type planWriter struct {
	b               []byte // the whole plan
	extents, chunks []byte // what of it is to be written
	n               uint32 // chunks written
}

// newPlanWriter makes one for a plan of so many extents and chunks: add gives no more, and no fewer.
func newPlanWriter(extents, chunks int) *planWriter {
	b := make([]byte, planHeader+extents*extentSize+chunks*chunkSize+sha256.Size)
	copy(b, planMagic)
	binary.LittleEndian.PutUint64(b[8:], uint64(extents))
	binary.LittleEndian.PutUint64(b[16:], uint64(chunks))
	at := planHeader + extents*extentSize
	return &planWriter{b: b, extents: b[planHeader:at], chunks: b[at : len(b)-sha256.Size]}
}

func (w *planWriter) add(off, size int64, key layer.Key, ly int, chunks []layer.Chunk) {
	le := binary.LittleEndian
	e := w.extents[:extentSize]
	w.extents = w.extents[extentSize:]
	le.PutUint64(e, uint64(off))
	le.PutUint64(e[8:], uint64(size))
	copy(e[16:], key[:])
	le.PutUint32(e[48:], w.n)
	le.PutUint32(e[52:], uint32(len(chunks)))
	le.PutUint64(e[56:], uint64(ly))
	w.n += uint32(len(chunks))
	for _, ch := range chunks {
		c := w.chunks[:chunkSize]
		w.chunks = w.chunks[chunkSize:]
		for i, v := range [...]int64{ch.Off, ch.Size, ch.Start, ch.End, ch.Inner} {
			le.PutUint64(c[8*i:], uint64(v))
		}
		copy(c[40:], ch.Digest[:])
	}
}

// bytes is the plan. Nothing is added any more.
func (w *planWriter) bytes() []byte {
	end := len(w.b) - sha256.Size
	h := sha256.Sum256(w.b[:end])
	copy(w.b[end:], h[:])
	return w.b
}

// readPlan checks a plan of an image of size bytes with n layers: contents lie in the image, each in blocks of its own, and their
// chunks follow each other and make up the whole, unless there are none (contents of streamed layers).
func readPlan(b []byte, size int64, n int) (*plan, error) {
	le := binary.LittleEndian
	if len(b) < planHeader+sha256.Size || string(b[:8]) != planMagic {
		return nil, fmt.Errorf("%w: the plan has other bytes on disk", errPlan)
	}
	body := b[:len(b)-sha256.Size]
	if sha256.Sum256(body) != [32]byte(b[len(body):]) {
		return nil, fmt.Errorf("%w: the plan has other bytes on disk", errPlan)
	}
	ne, nc := le.Uint64(b[8:]), le.Uint64(b[16:])
	if ne > math.MaxInt32 || nc > math.MaxInt32 || uint64(len(body)) != planHeader+ne*extentSize+nc*chunkSize {
		return nil, errPlan
	}
	p := &plan{b: b, extents: int(ne), chunks: int(nc)}
	end, chunks := int64(0), uint64(0)
	for i := range p.extents {
		e := p.extent(i)
		if e.off < end || e.off%store.BlockSize != 0 || e.size <= 0 || e.size > size || e.off > size-e.size || uint64(e.first) != chunks || uint64(e.chunks) > nc-chunks || int64(e.layer) >= int64(n) || !p.chunksFit(e) {
			return nil, fmt.Errorf("%w: extent %d", errPlan, i)
		}
		end, chunks = e.off+e.size, chunks+uint64(e.chunks)
	}
	if chunks != nc {
		return nil, fmt.Errorf("%w: %d chunks, %d in extents", errPlan, nc, chunks)
	}
	return p, nil
}

// chunksFit tells whether an extent's chunks are its content.
func (p *plan) chunksFit(e extent) bool {
	off := int64(0)
	for i := range int(e.chunks) {
		c := p.chunk(int(e.first) + i)
		if c.Off != off || c.Size <= 0 || c.Size > e.size-off || c.Start < 0 || c.End <= c.Start || c.Inner < 0 {
			return false
		}
		off += c.Size
	}
	return e.chunks == 0 || off == e.size
}

func (p *plan) extent(i int) extent {
	le := binary.LittleEndian
	b := p.b[planHeader+i*extentSize:][:extentSize]
	return extent{
		off: int64(le.Uint64(b)), size: int64(le.Uint64(b[8:])), key: layer.Key(b[16:48]),
		first: le.Uint32(b[48:]), chunks: le.Uint32(b[52:]), layer: uint32(min(le.Uint64(b[56:]), math.MaxUint32)),
	}
}

func (p *plan) chunk(i int) layer.Chunk {
	le := binary.LittleEndian
	b := p.b[planHeader+p.extents*extentSize+i*chunkSize:][:chunkSize]
	return layer.Chunk{
		Off: int64(le.Uint64(b)), Size: int64(le.Uint64(b[8:])), Start: int64(le.Uint64(b[16:])), End: int64(le.Uint64(b[24:])),
		Inner: int64(le.Uint64(b[32:])), Digest: [32]byte(b[40:72]),
	}
}

// find gives the first extent that ends after off.
func (p *plan) find(off int64) int {
	return sort.Search(p.extents, func(i int) bool { e := p.extent(i); return e.off+e.size > off })
}

// chunkAt gives the first chunk of e that ends after the content offset off.
func (p *plan) chunkAt(e extent, off int64) int {
	n := sort.Search(int(e.chunks), func(i int) bool { c := p.chunk(int(e.first) + i); return c.Off+c.Size > off })
	return int(e.first) + n
}
