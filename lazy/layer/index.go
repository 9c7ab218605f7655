package layer

import "github.com/pexfs/pex/lazy/tree"

// Source says what an Index was made from. It is part of an image's identity: a TOC is lossy where its tar is not.
type Source uint8

const (
	FromTar Source = iota
	FromTOC
)

// Index is everything known of one layer: its entries in their order, and where the contents of its files are.
type Index struct {
	Source   Source
	Format   Format // how chunks are compressed; of a FromTOC index
	Entries  []tree.Entry
	Contents []Content // by tree.Entry.Content
	Chunks   []Chunk   // the chunks of Contents[0], then of Contents[1], …; of a FromTOC index
}

// Format is a layer's compression.
type Format uint8

const (
	Plain Format = iota
	Gzip
	Zstd
)

// Key identifies a content: two contents with the same key are the same bytes. It is made by a hash (SHA-256) over
// the size and the digests of the content's pieces, with a prefix that tells the kinds of pieces apart: chunks of a
// TOC as they are cut there, 4 KiB blocks of a streamed layer. So keys of the two kinds never compare equal.
type Key [32]byte

// Content is the content of one regular file that isn't empty.
type Content struct {
	Key  Key
	Size int64
	// FirstChunk and Chunks are the content's part of Index.Chunks, in the order of their Off and without gaps (FromTOC).
	FirstChunk, Chunks uint32
	// SpoolOff is where the content begins in the layer's spool, a multiple of 4,096 (FromTar).
	SpoolOff int64
}

// Chunk is a piece of a content that is fetched and verified as one. It has at most 64 MiB.
type Chunk struct {
	Off, Size int64    // the piece of the content
	Digest    [32]byte // SHA-256 of these bytes
	// Start and End bound the gzip member or zstd frame (or plain bytes) that holds the chunk, in the blob. Chunks with the
	// same Start have the same End; those with another don't overlap. What the TOC leaves out, as headers, may lie before End.
	Start, End int64
	Inner      int64 // where the chunk begins in what that member inflates to
}
