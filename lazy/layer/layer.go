// Package layer turns one layer's blob into its entries and a table of where its contents are.
//
// A layer whose table of contents (TOC) the manifest vouches for is read by ReadTOC, with one or two range requests:
// eStargz, and zstd:chunked as the estargz package and containers/image write it. Any other layer, in gzip, zstd or
// plain tar, is read whole by Stream. The contents of a layer with a TOC are read chunk by chunk, by ReadChunks or a
// ChunkReader. What was learned of a layer is kept as Index.MarshalBinary writes it.
//
// Nothing is returned that was not verified: a TOC against the manifest's annotation, a chunk against its digest, a
// streamed layer against the digest and size of its descriptor and its diffID. Blobs are hostile: counts, sizes and
// the memory they take are bounded, and what is contradictory is refused. Errors name the entry, and its offset where it has one;
// the layer's digest is the caller's to add.
//
// The functions are safe for concurrent use; an Index may be read, but not changed, by several goroutines at once.
package layer

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// ErrNoTOC is wrapped where a layer has no TOC that can be used: none that the manifest vouches for, or one that is
// of an unknown kind or has lost what the tar says. The layer is to be streamed.
var ErrNoTOC = errors.New("no usable table of contents")

// ErrLimit is wrapped where a layer has more than its Limits permit.
var ErrLimit = errors.New("the layer exceeds a limit")

func noTOC(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrNoTOC, fmt.Sprintf(format, a...))
}

// Files that eStargz adds to a layer's root, which are not part of its tree.
const (
	tocName            = "stargz.index.json"
	prefetchLandmark   = ".prefetch.landmark"
	noPrefetchLandmark = ".no.prefetch.landmark"
)

// added tells whether a name is one of eStargz's own.
func added(name string) bool {
	switch strings.TrimPrefix(path.Clean("/"+name), "/") {
	case tocName, prefetchLandmark, noPrefetchLandmark:
		return true
	}
	return false
}

// Limits of what one layer may have. A zero field is its default.
type Limits struct {
	MaxSize    int64 // bytes that a layer may inflate to, and that its files may have together, holes included; 256 GiB
	MaxEntries int   // entries in a layer, whiteouts included; 5 million
	// Progress is told how many compressed bytes Stream or Verify have read so far, by one goroutine at a time; it may be nil.
	Progress func(int64)
}

func (l Limits) withDefaults() Limits {
	if l.MaxSize == 0 {
		l.MaxSize = 256 << 30
	}
	if l.MaxEntries == 0 {
		l.MaxEntries = maxEntries
	}
	return l
}

const (
	maxEntries = 5_000_000
	maxStrings = 1 << 30   // bytes of all names, link targets and attributes of a layer
	maxXattrs  = 256 << 10 // bytes of an entry's attributes
	maxChunk   = 64 << 20  // bytes of a chunk: it is in memory whole while it is verified
	maxWindow  = 128 << 20 // bytes of memory that a zstd frame may ask for; `zstd --ultra --long=27` makes such
)
