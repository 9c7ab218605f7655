package layer

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/pexfs/pex/lazy/tree"
)

const (
	holePiece = 4 << 20  // bytes of the pieces that a hole beyond maxChunk is cut into
	fffd      = "\uFFFD" // what JSON has in the place of what isn't UTF-8
)

// parseTOC turns the JSON of a TOC into an index. It takes memory for one of likely bytes at once. end is where the blob's data ends: no
// chunk reaches beyond it.
func parseTOC(json io.Reader, likely int64, end int64, f Format, lim Limits) (*Index, error) {
	const usual = 350 // bytes of an entry: most have two digests
	b := tocBuilder{ix: &Index{Source: FromTOC, Format: f}, end: end, sum: tally{lim: lim}, key: sha256.New()}
	b.ix.Entries = make([]tree.Entry, 0, max(0, min(int(likely/usual), lim.MaxEntries)))
	b.ix.Chunks = make([]Chunk, 0, min(likely/usual, maxChunks))
	version, err := scanTOC(json, b.add)
	var bad *entryError
	switch {
	case errors.As(err, &bad):
		return nil, fmt.Errorf("reading TOC: %w", err)
	case err != nil:
		return nil, noTOC("%v", err)
	case version != 0 && version != 1: // nobody has ever written another
		return nil, noTOC("it is of version %d", version)
	}
	if err := b.closeFile(); err != nil {
		return nil, fmt.Errorf("reading TOC: %w", err)
	}
	if err := b.bound(); err != nil {
		return nil, fmt.Errorf("reading TOC: %w", err)
	}
	return b.ix, nil
}

// entryError says which entry of a TOC an error is about. They are counted as those of a tar are: from 0, without eStargz's
// own files, and a file's chunks are of its entry.
type entryError struct {
	number int
	name   string
	err    error
}

func (e *entryError) Error() string {
	return fmt.Sprintf("entry %d %.200q: %v", e.number, e.name, e.err)
}
func (e *entryError) Unwrap() error { return e.err }

// tocBuilder makes an index of a TOC's entries. A regular file's entry is its first chunk too; its other chunks are the
// entries of type "chunk" that follow it.
type tocBuilder struct {
	ix   *Index
	end  int64
	sum  tally
	file file // the last regular file that isn't empty, while it may get more chunks
	key  hash.Hash
	row  [8 + 32]byte // of what key hashes
	text arena        // of names and link targets
	// the last time that was parsed: neighbours tend to have the same
	timeText []byte
	time     tree.Time
}

type file struct {
	open      bool
	added     bool // by eStargz: it gets no content
	number    int  // of its entry
	name      string
	size      int64
	have      int64 // bytes that its chunks hold so far
	endOffset int64 // of its last chunk's member, or 0
}

func (f *file) error(err error) error { return &entryError{f.number, f.name, err} }

// add adds an entry of the TOC.
func (b *tocBuilder) add(e *tocEntry) error {
	number := len(b.ix.Entries)
	if string(e.typ) == "chunk" {
		if !b.file.open {
			return &entryError{number, string(e.name), errors.New("a chunk that belongs to no file")}
		}
		if len(e.name) > 0 && string(e.name) != b.file.name {
			return b.file.error(fmt.Errorf("behind it is a chunk of %.200q", e.name))
		}
		if err := b.chunk(e); err != nil {
			return b.file.error(err)
		}
		return nil
	}
	if err := b.closeFile(); err != nil {
		return err
	}
	if err := b.entry(e); err != nil {
		return &entryError{number, string(e.name), err}
	}
	return nil
}

// entry adds an entry that isn't of type "chunk".
func (b *tocBuilder) entry(e *tocEntry) error {
	out, err := e.entry(&b.text)
	if err != nil {
		return err
	}
	if out.Mtime, err = b.parseTime(e.modTime); err != nil {
		return err
	}
	number, isAdded := len(b.ix.Entries), added(out.Name)
	if !isAdded {
		if err := b.sum.add(&out); err != nil {
			return err
		}
		if out.Type == tree.Regular && out.Size > 0 {
			out.Content = int32(len(b.ix.Contents)) // fewer than entries
			b.ix.Contents = append(b.ix.Contents, Content{Size: out.Size, FirstChunk: uint32(len(b.ix.Chunks))})
		}
		b.ix.Entries = append(b.ix.Entries, out)
	}
	if out.Type != tree.Regular || out.Size == 0 {
		return nil
	}
	if e.endOffset < 0 {
		return fmt.Errorf("a chunk at offset %d ends at %d", e.offset, e.endOffset)
	}
	b.file = file{open: true, added: isAdded, number: number, name: out.Name, size: e.size, endOffset: e.endOffset}
	return b.chunk(e)
}

// entry is e without its time and what it says of chunks. Its name and link target are of text.
func (e *tocEntry) entry(text *arena) (tree.Entry, error) {
	// two names that aren't UTF-8 may have become one
	lossy := bytes.Contains(e.name, []byte(fffd)) || bytes.Contains(e.link, []byte(fffd))
	for _, x := range e.xattrs {
		lossy = lossy || strings.Contains(x.Name, fffd)
	}
	if lossy {
		return tree.Entry{}, noTOC("it has U+FFFD, which stands for what isn't UTF-8")
	}
	if e.xattrBytes > maxXattrs {
		return tree.Entry{}, fmt.Errorf("attributes of more than %d bytes", maxXattrs)
	}
	typ, ok := tocType(e.typ)
	if !ok {
		return tree.Entry{}, noTOC("it is of type %.40q", e.typ)
	}
	for _, v := range [...]struct {
		name  string
		value int64
	}{{"uid", e.uid}, {"gid", e.gid}, {"major", e.devMajor}, {"minor", e.devMinor}} {
		if v.value < 0 || v.value > math.MaxUint32 {
			return tree.Entry{}, fmt.Errorf("%s %d", v.name, v.value)
		}
	}
	out := tree.Entry{
		Name: text.string(e.name), Type: typ, Mode: uint32(e.mode & 0o7777),
		UID: uint32(e.uid), GID: uint32(e.gid), Xattrs: e.xattrs,
	}
	switch typ {
	case tree.Regular:
		if out.Size = e.size; e.size < 0 {
			return tree.Entry{}, fmt.Errorf("size %d", e.size)
		}
	case tree.Symlink, tree.HardLink:
		out.Linkname = text.string(e.link)
	case tree.Char, tree.Block:
		out.Major, out.Minor = uint32(e.devMajor), uint32(e.devMinor)
	}
	return out, nil
}

// parseTime reads a time; an empty one is 1970.
func (b *tocBuilder) parseTime(text []byte) (tree.Time, error) {
	if len(text) == 0 {
		return tree.Time{}, nil
	}
	if !bytes.Equal(text, b.timeText) {
		t, err := time.Parse(time.RFC3339, string(text)) // which takes fractions too
		if err != nil {
			return tree.Time{}, noTOC("its time: %v", err)
		}
		b.timeText, b.time = append(b.timeText[:0], text...), tree.Time{}
		if !t.IsZero() { // containers/image has had the year 1 for "unknown"
			b.time = tree.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}
		}
	}
	return b.time, nil
}

// typeName is the name that a TOC has for a type.
func typeName(t tree.Type) string {
	switch t {
	case tree.Dir:
		return "dir"
	case tree.Regular:
		return "reg"
	case tree.Symlink:
		return "symlink"
	case tree.HardLink:
		return "hardlink"
	case tree.Char:
		return "char"
	case tree.Block:
		return "block"
	}
	return "fifo"
}

func tocType(name []byte) (t tree.Type, ok bool) {
	switch string(name) {
	case "dir":
		return tree.Dir, true
	case "reg":
		return tree.Regular, true
	case "symlink":
		return tree.Symlink, true
	case "hardlink":
		return tree.HardLink, true
	case "char":
		return tree.Char, true
	case "block":
		return tree.Block, true
	case "fifo":
		return tree.Fifo, true
	}
	return 0, false
}

// chunk adds a chunk to the open file.
func (b *tocBuilder) chunk(e *tocEntry) error {
	f := &b.file
	if f.added {
		return nil
	}
	size := e.chunkSize
	if size == 0 {
		size = f.size - f.have // the last one need not say it
	}
	switch {
	case e.chunkOffset != f.have:
		return fmt.Errorf("a chunk at %d where %d is next", e.chunkOffset, f.have)
	case size <= 0 || size > f.size-f.have:
		return fmt.Errorf("a chunk of %d bytes at %d of %d", size, f.have, f.size)
	case e.offset < 0 || e.offset >= b.end:
		return fmt.Errorf("a chunk at offset %d: the blob's data ends at %d", e.offset, b.end)
	case e.inner < 0:
		return fmt.Errorf("a chunk at offset %d, %d within", e.offset, e.inner)
	case e.inner > maxMember-size:
		return noTOC("a chunk at offset %d, %d within, of %d bytes", e.offset, e.inner, size)
	}
	sum := e.chunkDigest
	if len(sum) == 0 && size == f.size {
		sum = e.digest // the only chunk: e is the file's entry
	}
	if len(sum) == 0 {
		return noTOC("nothing vouches for the chunk at offset %d", e.offset)
	}
	digest, err := parseSHA256(sum)
	if err != nil {
		return noTOC("the chunk at offset %d: %v", e.offset, err)
	}
	switch {
	case len(e.chunkType) > 0 && string(e.chunkType) != "zeros":
		return noTOC("the chunk at offset %d is of type %.40q", e.offset, e.chunkType)
	case size <= maxChunk:
		return b.piece(Chunk{Size: size, Digest: digest, Start: e.offset, Inner: e.inner})
	case len(e.chunkType) == 0:
		return noTOC("the chunk at offset %d has %d bytes", e.offset, size)
	}
	// A hole is in the blob as the zeros it stands for, and its pieces can be read like any others.
	digest = sha256.Sum256(make([]byte, holePiece))
	for size > 0 {
		n := min(size, holePiece)
		if n < holePiece {
			digest = sha256.Sum256(make([]byte, n))
		}
		if err := b.piece(Chunk{Size: n, Digest: digest, Start: e.offset, Inner: e.inner}); err != nil {
			return err
		}
		size -= n
		e.inner += n
	}
	return nil
}

// piece adds a chunk to the index.
func (b *tocBuilder) piece(c Chunk) error {
	if len(b.ix.Chunks) == maxChunks {
		return fmt.Errorf("more than %d chunks", maxChunks)
	}
	c.Off = b.file.have
	b.file.have += c.Size
	b.ix.Chunks = append(b.ix.Chunks, c)
	b.ix.Contents[len(b.ix.Contents)-1].Chunks++
	return nil
}

// closeFile sees to it that the open file, if any, has all its chunks, and makes its key.
func (b *tocBuilder) closeFile() error {
	f := &b.file
	if !f.open || f.added {
		f.open = false
		return nil
	}
	f.open = false
	if f.have != f.size {
		return f.error(fmt.Errorf("its chunks have %d bytes, the file has %d", f.have, f.size))
	}
	c := &b.ix.Contents[len(b.ix.Contents)-1]
	chunks := b.ix.Chunks[c.FirstChunk:]
	chunks[len(chunks)-1].End = f.endOffset
	b.key.Reset()
	_, _ = b.key.Write(append(b.row[:0], "pex chunks 1"...)) // a hash never fails
	for i := range chunks {
		binary.LittleEndian.PutUint64(b.row[:], uint64(chunks[i].Size))
		copy(b.row[8:], chunks[i].Digest[:])
		_, _ = b.key.Write(b.row[:])
	}
	b.key.Sum(c.Key[:0])
	return nil
}

// bound finds out where every chunk's member ends: where the TOC says so, or where the next member begins, or the data ends.
// It refuses chunks that overlap.
func (b *tocBuilder) bound() error {
	chunks := b.ix.Chunks
	order := make([]int32, len(chunks))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortStableFunc(order, func(i, j int32) int {
		return cmp.Or(cmp.Compare(chunks[i].Start, chunks[j].Start), cmp.Compare(chunks[i].Inner, chunks[j].Inner))
	})
	for len(order) > 0 {
		first, last := &chunks[order[0]], order[0] // last is what says the end
		n, end, inner := 0, int64(0), int64(0)
		for ; n < len(order) && chunks[order[n]].Start == first.Start; n++ {
			c := &chunks[order[n]]
			if c.Inner < inner && !sameBytes(c, &chunks[order[n-1]]) {
				return b.chunkError(order[n], "a chunk at offset %d, %d within, overlaps another one", c.Start, c.Inner)
			}
			inner = c.Inner + c.Size
			if c.End > end {
				end, last = c.End, order[n]
			}
		}
		next := b.end
		if n < len(order) {
			next = chunks[order[n]].Start
		}
		switch {
		case end == 0:
			end = next
		case end <= first.Start:
			return b.chunkError(last, "a chunk at offset %d ends at %d", first.Start, end)
		case end > next:
			return b.chunkError(last, "a chunk at offset %d reaches to %d, where %d is not its own", first.Start, end, next)
		}
		for _, i := range order[:n] {
			chunks[i].End = end
		}
		order = order[n:]
	}
	return nil
}

// chunkError is an error about a chunk of the index, and names the first file that has it.
func (b *tocBuilder) chunkError(chunk int32, format string, a ...any) error {
	i := slices.IndexFunc(b.ix.Entries, func(e tree.Entry) bool {
		if e.Type != tree.Regular || e.Size == 0 {
			return false
		}
		c := b.ix.Contents[e.Content]
		return uint32(chunk)-c.FirstChunk < c.Chunks
	})
	return &entryError{i, b.ix.Entries[i].Name, fmt.Errorf(format, a...)}
}

// sameBytes tells whether two chunks are the same bytes of a blob.
func sameBytes(a, b *Chunk) bool {
	return a.Start == b.Start && a.Inner == b.Inner && a.Size == b.Size && a.Digest == b.Digest
}
