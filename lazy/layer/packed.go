package layer

import (
	"iter"

	"github.com/pexfs/pex/lazy/tree"
)

// Packed is an Index whose entries are as they are encoded: in less than half of the memory, to be gone through one by one. It never
// changes, and may be read concurrently. Its tables may be those of the Index that it was made of.
type Packed struct {
	Source   Source
	Format   Format
	Contents []Content
	Chunks   []Chunk
	entries  []byte
	n        int // of entries
}

// Pack packs an index. It shares the tables of contents and chunks.
func (ix *Index) Pack() *Packed {
	size := 0
	for i := range ix.Entries {
		e := &ix.Entries[i]
		size += len(e.Name) + len(e.Linkname) + usualEntry
		for _, x := range e.Xattrs {
			size += len(x.Name) + len(x.Value) + 4
		}
	}
	e := encoder{b: make([]byte, 0, size)}
	for i := range ix.Entries {
		e.entry(&ix.Entries[i])
	}
	return &Packed{Source: ix.Source, Format: ix.Format, Contents: ix.Contents, Chunks: ix.Chunks, entries: e.b, n: len(ix.Entries)}
}

// Len is the number of entries.
func (p *Packed) Len() int { return p.n }

// Tables is the index without its entries.
func (p *Packed) Tables() *Packed {
	return &Packed{Source: p.Source, Format: p.Format, Contents: p.Contents, Chunks: p.Chunks}
}

// Entries yields the entries in their order. Those of an index that doesn't hold together end in an error.
func (p *Packed) Entries() iter.Seq2[tree.Entry, error] {
	return func(yield func(tree.Entry, error) bool) {
		d := decoder{b: p.entries}
		var text arena
		for range p.n {
			var e tree.Entry
			d.entry(&e, &text)
			if d.bad || !holds(p.Contents, &e) {
				yield(tree.Entry{}, errCodec)
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// holds tells whether contents have the content that e says it has.
func holds(contents []Content, e *tree.Entry) bool {
	return e.Type != tree.Regular || e.Size == 0 || int(e.Content) < len(contents) && contents[e.Content].Size == e.Size
}
