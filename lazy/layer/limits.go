package layer

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/pexfs/pex/lazy/tree"
)

// ErrLimit is wrapped where a layer has more than its Limits permit.
var ErrLimit = errors.New("the layer exceeds a limit")

// Limits of what one layer may have, however it is read. A zero field is its default.
type Limits struct {
	MaxSize    int64 // bytes that a layer or its TOC may inflate to, and that its files may have together, holes included; 256 GiB
	MaxEntries int   // entries in a layer, whiteouts included; 5 million
	// Progress is told how many compressed bytes Stream or Verify have read so far, by one goroutine at a time; it may be nil.
	Progress func(int64)
}

func (l Limits) withDefaults() Limits {
	l.MaxSize = cmp.Or(l.MaxSize, 256<<30)
	l.MaxEntries = cmp.Or(l.MaxEntries, 5_000_000)
	return l
}

// Bounds that nobody sets: real layers stay far below them.
const (
	maxName    = 64 << 10  // bytes of a name or a link target
	maxXattrs  = 256 << 10 // bytes of an entry's attributes
	xattrCost  = 64        // bytes that an attribute counts for besides its name and value: about what it takes in memory
	maxStrings = 1 << 30   // bytes of all names, link targets and attributes of a layer
	maxTOC     = 512 << 20 // bytes of a TOC's JSON, and of what is fetched to get it; a million entries take about 340 MB
	maxDepth   = 64        // values of a TOC's JSON within each other
	maxText    = 1 << 20   // bytes of a string in a TOC's JSON
	maxChunks  = 4 << 20   // chunks of a layer
	maxChunk   = 64 << 20  // bytes of a chunk: it is in memory whole while it is verified
	maxMember  = 1 << 30   // bytes of what a member inflates to that have to be inflated to get at a chunk
	maxWindow  = 128 << 20 // bytes of memory that a zstd frame may ask for; `zstd --ultra --long=27` makes such
)

// tally adds up what a layer's entries have, and refuses what is too much before anything is made of it.
type tally struct {
	lim     Limits
	entries int
	size    int64 // of all contents
	strings int64 // bytes of names, link targets and attributes
}

func (t *tally) add(e *tree.Entry) error {
	if t.entries >= t.lim.MaxEntries {
		return fmt.Errorf("%w: more than %d entries", ErrLimit, t.lim.MaxEntries)
	}
	if len(e.Name) > maxName {
		return fmt.Errorf("its name has %d bytes", len(e.Name))
	}
	if len(e.Linkname) > maxName {
		return fmt.Errorf("its target has %d bytes", len(e.Linkname))
	}
	t.strings += int64(len(e.Name) + len(e.Linkname))
	for _, x := range e.Xattrs {
		t.strings += int64(len(x.Name) + len(x.Value) + xattrCost)
	}
	if t.strings > maxStrings {
		return fmt.Errorf("the layer's names and attributes have more than %d bytes", maxStrings)
	}
	if e.Type == tree.Regular {
		if e.Size > t.lim.MaxSize-t.size { // holes take no place in the layer
			return fmt.Errorf("%w: with its %d bytes the layer's files have more than %d", ErrLimit, e.Size, t.lim.MaxSize)
		}
		t.size += e.Size
	}
	t.entries++
	return nil
}
