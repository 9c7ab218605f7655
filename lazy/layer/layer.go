// Package layer turns one layer's blob into its entries and a table of where its contents are.
//
// A layer whose table of contents (TOC) the manifest vouches for is read by ReadTOC, with one or two range requests:
// eStargz, and zstd:chunked as the estargz package and containers/image write it. Any other layer, in gzip, zstd or
// plain tar, is read whole by Stream. The contents of a layer with a TOC are read chunk by chunk by ReadChunks.
//
// Nothing is returned that was not verified: a TOC against the manifest's annotation, a chunk against its digest, a
// streamed layer against the digest and size of its descriptor and its diffID. Blobs are hostile: counts and sizes are bounded.
package layer

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// ErrNoTOC is wrapped where a layer has no TOC that can be used: the layer is to be streamed.
var ErrNoTOC = errors.New("no usable table of contents")

func noTOC(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrNoTOC, fmt.Sprintf(format, a...))
}

// Files that eStargz adds to a layer, which are not part of its tree.
const (
	tocName          = "stargz.index.json"
	landmark         = ".prefetch.landmark"
	noPrefetchMarker = ".no.prefetch.landmark"
)

// ours tells whether a name in the layer's root is eStargz's own.
func ours(name string) bool {
	switch strings.TrimPrefix(path.Clean("/"+name), "/") {
	case tocName, landmark, noPrefetchMarker:
		return true
	}
	return false
}

// Limits of what is read of one layer. A zero field is its default.
type Limits struct {
	MaxSize    int64 // bytes that a layer may inflate to; 1 TiB
	MaxEntries int   // entries in a layer; 20 million
	// Progress is told how many compressed bytes were read so far; it may be nil.
	Progress func(int64)
}

const (
	defaultMaxSize    = 1 << 40
	defaultMaxEntries = 20_000_000
	maxTOC            = 1 << 30  // bytes of a TOC's JSON
	maxChunk          = 64 << 20 // bytes of a chunk: one is held in memory whole
	maxXattrs         = 256 << 10
)
