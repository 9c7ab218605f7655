// Package layer turns one layer's blob into its entries and a table of where its contents are.
//
// A layer whose table of contents (TOC) the manifest vouches for is read by ReadTOC, with one or two range requests:
// eStargz, and zstd:chunked as the estargz package and containers/image write it. Any other layer, in gzip, zstd or
// plain tar, is read whole by Stream. The contents of a layer with a TOC are read chunk by chunk, by ReadChunks or a
// ChunkReader. What was learned of a layer is kept as Index.MarshalBinary writes it.
//
// Nothing is returned that was not verified: a TOC against the manifest's annotation, a chunk against its digest, a
// streamed layer against the digest and size of its descriptor and its diffID. Blobs are hostile: counts, sizes and
// the memory they take are bounded, and what is contradictory is refused. Errors name the entry, by its number from 0
// and its name, and the offset where there is one; the layer's digest is the caller's to add.
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
	if !strings.Contains(name, "landmark") && !strings.Contains(name, tocName) {
		return false
	}
	switch strings.TrimPrefix(path.Clean("/"+name), "/") {
	case tocName, prefetchLandmark, noPrefetchLandmark:
		return true
	}
	return false
}
