package lazy

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/store"
)

// FuzzPlan reads plans of any bytes; their checksum is made right. One that is accepted lies in the image, its chunks make up its
// contents, what is looked up in it is right, and it is what would be written.
func FuzzPlan(f *testing.F) {
	const block = store.BlockSize
	seed := func(size int64, layers uint8, extents, chunks int, add func(w *planWriter)) {
		w := newPlanWriter(extents, chunks)
		add(w)
		b := w.bytes()
		f.Add(b[:len(b)-sha256.Size], size, layers, size/2)
	}
	seed(4*block, 2, 2, 2, func(w *planWriter) {
		w.add(block, 5000, layer.Key{1}, 0, []layer.Chunk{{Size: 4000, End: 10}, {Off: 4000, Size: 1000, End: 10, Inner: 4000}})
		w.add(3*block, block, layer.Key{2}, 1, nil)
	})
	seed(block, 0, 0, 0, func(*planWriter) {})
	// a content of another's blocks, one within a block, chunks with a gap, of nothing, beyond the content, and of nobody
	seed(4*block, 1, 2, 0, func(w *planWriter) { w.add(0, 5000, layer.Key{}, 0, nil); w.add(block, 1, layer.Key{}, 0, nil) })
	seed(4*block, 1, 1, 0, func(w *planWriter) { w.add(100, 100, layer.Key{}, 0, nil) })
	seed(4*block, 1, 1, 2, func(w *planWriter) {
		w.add(0, 20, layer.Key{}, 0, []layer.Chunk{{Size: 9, End: 1}, {Off: 10, Size: 10, End: 1}})
	})
	seed(4*block, 1, 1, 2, func(w *planWriter) {
		w.add(0, 20, layer.Key{}, 0, []layer.Chunk{{Size: 20, End: 1}, {Off: 20, End: 1}})
	})
	seed(4*block, 1, 1, 1, func(w *planWriter) {
		w.add(0, 20, layer.Key{}, 0, []layer.Chunk{{Size: 1 << 62, Start: 5, End: 4}})
	})
	seed(4*block, 1, 0, 1, func(*planWriter) {})
	seed(4*block, 1, 1, 0, func(w *planWriter) { w.add(0, 20, layer.Key{}, 1<<32, nil) })
	f.Fuzz(func(t *testing.T, body []byte, size int64, layers uint8, off int64) {
		sum := sha256.Sum256(body)
		b := append(bytes.Clone(body), sum[:]...)
		p, err := readPlan(b, size, int(layers))
		if err != nil {
			return
		}
		w := newPlanWriter(p.extents, p.chunks)
		end := int64(0)
		for i := range p.extents {
			e := p.extent(i)
			if e.off < end || e.off%block != 0 || e.size <= 0 || e.off > size-e.size || e.layer >= uint32(layers) {
				t.Fatalf("extent %d of an image of %d bytes and %d layers: %+v", i, size, layers, e)
			}
			end = (e.off + e.size + block - 1) / block * block
			var chunks []layer.Chunk
			var sum int64
			for k := int(e.first); k < int(e.first+e.chunks); k++ {
				c := p.chunk(k)
				if c.Off != sum || c.Size <= 0 || c.Off > e.size-c.Size || c.Start < 0 || c.End <= c.Start || c.Inner < 0 {
					t.Fatalf("chunk %d of a content of %d bytes: %+v", k, e.size, c)
				}
				sum += c.Size
				for _, at := range [...]int64{c.Off, c.Off + c.Size - 1} {
					if got := p.chunkAt(e, at); got != k {
						t.Errorf("byte %d of a content is in chunk %d, not %d", at, got, k)
					}
				}
				chunks = append(chunks, c)
			}
			if e.chunks > 0 && sum != e.size {
				t.Fatalf("chunks of %d bytes for %d", sum, e.size)
			}
			if k := p.chunkAt(e, off); k < int(e.first) || k > int(e.first+e.chunks) {
				t.Errorf("byte %d of a content is in chunk %d, which is another's", off, k)
			}
			w.add(e.off, e.size, e.key, int(e.layer), chunks)
		}
		if i := p.find(off); i < p.extents && p.extent(i).off+p.extent(i).size <= off || i > 0 && p.extent(i-1).off+p.extent(i-1).size > off {
			t.Errorf("the first extent that ends after %d is not %d", off, i)
		}
		if !bytes.Equal(w.bytes(), b) {
			t.Error("what was read would be written otherwise")
		}
	})
}
