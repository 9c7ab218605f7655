package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/tree"
)

// Annotations of a layer's descriptor that vouch for its TOC.
const (
	tocDigest = estargz.TOCJSONDigestAnnotation // of the JSON
	// of zstd:chunked: "offset:compressed length:length:type", and the digest of the compressed TOC; as containers/image
	// writes them, and as the estargz package does
	imagePosition, imageChecksum     = "io.github.containers.zstd-chunked.manifest-position", "io.github.containers.zstd-chunked.manifest-checksum"
	estargzPosition, estargzChecksum = "io.containers.zstd-chunked.manifest-position", "io.containers.zstd-chunked.manifest-checksum"
)

// ReadTOC reads a layer's TOC and checks it against the annotations of d. The error wraps ErrNoTOC where the layer has none that is vouched
// for or can be used, and blob.ErrDigestMismatch where it has another than is vouched for.
func ReadTOC(ctx context.Context, src blob.Source, d v1.Descriptor) (*Index, error) {
	position, checksum := d.Annotations[imagePosition], d.Annotations[imageChecksum]
	if position == "" || checksum == "" {
		position, checksum = d.Annotations[estargzPosition], d.Annotations[estargzChecksum]
	}
	if position != "" && checksum != "" {
		return readZstdTOC(ctx, src, position, checksum)
	}
	want := d.Annotations[tocDigest]
	if want == "" {
		return nil, noTOC("the manifest vouches for none")
	}
	return readGzipTOC(ctx, src, want)
}

func parseSHA256(s string) ([32]byte, error) {
	h, ok := strings.CutPrefix(s, "sha256:")
	b, err := hex.DecodeString(h)
	if !ok || err != nil || len(b) != 32 {
		return [32]byte{}, fmt.Errorf("%.100q is not a SHA-256", s)
	}
	return [32]byte(b), nil
}

func readAll(ctx context.Context, src blob.Source, off, n int64) ([]byte, error) {
	r, err := src.Fetch(ctx, off, n)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	_, err = io.ReadFull(r, b)
	return b, errors.Join(err, r.Close())
}

// tailSize guesses how much of a blob's end holds the TOC: they are 0.35 to 0.65 % of real layers, more of tiny ones.
func tailSize(size int64) int64 { return min(size, max(64<<10, size/160)) }

func readGzipTOC(ctx context.Context, src blob.Source, want string) (*Index, error) {
	digest, err := parseSHA256(want)
	if err != nil {
		return nil, noTOC("its annotation: %v", err)
	}
	size := src.Size()
	n := tailSize(size)
	if n < estargz.FooterSize {
		return nil, noTOC("the blob has %d bytes", size)
	}
	tail, err := readAll(ctx, src, size-n, n)
	if err != nil {
		return nil, fmt.Errorf("fetching TOC: %w", err)
	}
	_, off, _, err := new(estargz.GzipDecompressor).ParseFooter(tail[n-estargz.FooterSize:])
	foot := int64(estargz.FooterSize)
	if err != nil {
		legacy := new(estargz.LegacyGzipDecompressor)
		foot = legacy.FooterSize()
		if _, off, _, err = legacy.ParseFooter(tail[n-foot:]); err != nil {
			return nil, noTOC("the blob has no eStargz footer")
		}
	}
	if off < 0 || off >= size-foot {
		return nil, noTOC("its footer points to %d of %d", off, size)
	}
	if start := size - n; off < start {
		if start-off > maxTOC {
			return nil, noTOC("it has more than %d bytes", maxTOC)
		}
		head, err := readAll(ctx, src, off, start-off)
		if err != nil {
			return nil, fmt.Errorf("fetching TOC: %w", err)
		}
		tail = append(head, tail...)
	} else {
		tail = tail[off-start:]
	}
	z, err := gzip.NewReader(bytes.NewReader(tail[:int64(len(tail))-foot]))
	if err != nil {
		return nil, fmt.Errorf("reading TOC: %w", err)
	}
	z.Multistream(false)
	tr := tar.NewReader(z)
	h, err := tr.Next()
	if err != nil {
		return nil, fmt.Errorf("reading TOC: %w", err)
	}
	if h.Name != estargz.TOCTarName || h.Size > maxTOC {
		return nil, noTOC("it is %.100q of %d bytes", h.Name, h.Size)
	}
	raw, err := io.ReadAll(io.LimitReader(tr, maxTOC))
	if err != nil {
		return nil, fmt.Errorf("reading TOC: %w", err)
	}
	if got := sha256.Sum256(raw); got != digest {
		return nil, fmt.Errorf("%w: TOC has sha256:%x, the manifest says %s", blob.ErrDigestMismatch, got, want)
	}
	return parseTOC(raw, off, Gzip)
}

func readZstdTOC(ctx context.Context, src blob.Source, position, checksum string) (*Index, error) {
	digest, err := parseSHA256(checksum)
	if err != nil {
		return nil, noTOC("its annotation: %v", err)
	}
	parts := strings.Split(position, ":")
	if len(parts) != 4 || parts[3] != "1" {
		return nil, noTOC("position %.100q", position)
	}
	var n [3]int64
	for i := range n {
		if n[i], err = strconv.ParseInt(parts[i], 10, 64); err != nil {
			return nil, noTOC("position %.100q", position)
		}
	}
	off, clen, ulen := n[0], n[1], n[2]
	if off <= 0 || clen <= 0 || ulen <= 0 || clen > maxTOC || ulen > maxTOC || off > src.Size()-clen {
		return nil, noTOC("position %.100q of a blob of %d bytes", position, src.Size())
	}
	b, err := readAll(ctx, src, off, clen)
	if err != nil {
		return nil, fmt.Errorf("fetching TOC: %w", err)
	}
	if got := sha256.Sum256(b); got != digest {
		return nil, fmt.Errorf("%w: TOC has sha256:%x, the manifest says %s", blob.ErrDigestMismatch, got, checksum)
	}
	z, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, fmt.Errorf("reading TOC: %w", err)
	}
	defer z.Close()
	raw, err := io.ReadAll(io.LimitReader(z, ulen+1))
	if err != nil || int64(len(raw)) != ulen {
		return nil, fmt.Errorf("reading TOC: %d bytes of %d: %w", len(raw), ulen, cmpErr(err))
	}
	return parseTOC(raw, off, Zstd)
}

func cmpErr(err error) error {
	if err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}

// tocEntry is an entry of a TOC's JSON: the estargz package's, and what containers/image adds.
type tocEntry struct {
	Name        string            `json:"name"`
	Type        string            `json:"type"`
	Size        int64             `json:"size"`
	ModTime     string            `json:"modtime"`
	LinkName    string            `json:"linkName"`
	Mode        int64             `json:"mode"`
	UID         int64             `json:"uid"`
	GID         int64             `json:"gid"`
	Offset      int64             `json:"offset"`
	EndOffset   int64             `json:"endOffset"`
	InnerOffset int64             `json:"innerOffset"`
	DevMajor    int64             `json:"devMajor"`
	DevMinor    int64             `json:"devMinor"`
	Xattrs      map[string][]byte `json:"xattrs"`
	ChunkOffset int64             `json:"chunkOffset"`
	ChunkSize   int64             `json:"chunkSize"`
	ChunkDigest string            `json:"chunkDigest"`
	ChunkType   string            `json:"chunkType"`
}

// parseTOC turns a TOC that was verified into an index. end is where the blob's data ends: no chunk lies behind it.
func parseTOC(raw []byte, end int64, f Format) (*Index, error) {
	p := &tocParser{ix: &Index{Source: FromTOC, Format: f}, end: end}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if err := p.parse(dec); err != nil {
		return nil, err
	}
	if err := p.closeFile(); err != nil {
		return nil, err
	}
	if err := p.setEnds(); err != nil {
		return nil, err
	}
	return p.ix, nil
}

type tocParser struct {
	ix   *Index
	end  int64
	open bool // the last entry is a file whose chunks are not complete
	ours bool // it is a file that isn't part of the tree
	have int64
	// ends that the TOC itself gives, by chunk
	ends []int64
}

func (p *tocParser) parse(dec *json.Decoder) error {
	t, err := dec.Token()
	if err != nil || t != json.Delim('{') {
		return noTOC("it is not a JSON object")
	}
	for dec.More() {
		k, err := dec.Token()
		if err != nil {
			return noTOC("%v", err)
		}
		if k != "entries" {
			var skip json.RawMessage
			if err := dec.Decode(&skip); err != nil {
				return noTOC("%v", err)
			}
			continue
		}
		if t, err := dec.Token(); err != nil || t != json.Delim('[') {
			return noTOC("its entries are not an array")
		}
		for dec.More() {
			var e tocEntry
			if err := dec.Decode(&e); err != nil {
				return noTOC("%v", err)
			}
			if err := p.add(&e); err != nil {
				if errors.Is(err, ErrNoTOC) {
					return err
				}
				return noTOC("entry %.200q: %v", e.Name, err)
			}
		}
		if _, err := dec.Token(); err != nil {
			return noTOC("%v", err)
		}
	}
	return nil
}

func (p *tocParser) add(e *tocEntry) error {
	if e.Type == "chunk" {
		if !p.open {
			return errors.New("a chunk that no file is waiting for")
		}
		return p.chunk(e)
	}
	if err := p.closeFile(); err != nil {
		return err
	}
	// JSON can't hold names that aren't UTF-8: they were replaced, and two may have become one
	if strings.Contains(e.Name, "\uFFFD") || strings.Contains(e.LinkName, "\uFFFD") {
		return noTOC("a name in it was not UTF-8")
	}
	if len(p.ix.Entries) >= defaultMaxEntries {
		return fmt.Errorf("more than %d entries", defaultMaxEntries)
	}
	out := tree.Entry{Name: e.Name, Linkname: e.LinkName, Mode: uint32(e.Mode & 0o7777)}
	const max32 = 1<<32 - 1
	if e.UID < 0 || e.UID > max32 || e.GID < 0 || e.GID > max32 || e.DevMajor < 0 || e.DevMajor > max32 || e.DevMinor < 0 || e.DevMinor > max32 {
		return fmt.Errorf("owner %d:%d, device %d:%d", e.UID, e.GID, e.DevMajor, e.DevMinor)
	}
	out.UID, out.GID, out.Major, out.Minor = uint32(e.UID), uint32(e.GID), uint32(e.DevMajor), uint32(e.DevMinor)
	if e.ModTime != "" {
		t, err := time.Parse(time.RFC3339Nano, e.ModTime)
		if err != nil {
			return err
		}
		out.Mtime = tree.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}
	}
	total := 0
	for k, v := range e.Xattrs {
		out.Xattrs = append(out.Xattrs, tree.Xattr{Name: k, Value: v})
		total += len(k) + len(v)
	}
	if total > maxXattrs {
		return fmt.Errorf("attributes of %d bytes", total)
	}
	slices.SortFunc(out.Xattrs, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	p.ours = ours(e.Name)
	switch e.Type {
	case "dir":
		out.Type = tree.Dir
	case "reg":
		out.Type, out.Size = tree.Regular, e.Size
		if e.Size < 0 {
			return fmt.Errorf("size %d", e.Size)
		}
		if e.Size > 0 && !p.ours {
			out.Content = int32(len(p.ix.Contents))
			p.ix.Contents = append(p.ix.Contents, Content{Size: e.Size, FirstChunk: uint32(len(p.ix.Chunks))})
		}
	case "symlink":
		out.Type = tree.Symlink
	case "hardlink":
		out.Type = tree.HardLink
	case "char":
		out.Type = tree.Char
	case "block":
		out.Type = tree.Block
	case "fifo":
		out.Type = tree.Fifo
	default:
		return fmt.Errorf("unknown type %.40q", e.Type)
	}
	if !p.ours {
		p.ix.Entries = append(p.ix.Entries, out)
	}
	if out.Type == tree.Regular && e.Size > 0 {
		p.open, p.have = true, 0
		return p.chunk(e)
	}
	return nil
}

// chunk adds a chunk to the last file.
func (p *tocParser) chunk(e *tocEntry) error {
	if p.ours {
		return nil
	}
	if e.ChunkType != "" {
		return noTOC("it has chunks of type %.40q", e.ChunkType)
	}
	c := &p.ix.Contents[len(p.ix.Contents)-1]
	size := e.ChunkSize
	if size == 0 {
		size = c.Size - e.ChunkOffset // the last one need not say it
	}
	digest, err := parseSHA256(e.ChunkDigest)
	if err != nil {
		return noTOC("a chunk's digest: %v", err)
	}
	switch {
	case e.ChunkOffset != p.have:
		return fmt.Errorf("a chunk at %d where %d is next", e.ChunkOffset, p.have)
	case size <= 0 || size > c.Size-p.have:
		return fmt.Errorf("a chunk of %d bytes at %d of %d", size, p.have, c.Size)
	case size > maxChunk:
		return noTOC("a chunk of %d bytes", size)
	case e.Offset < 0 || e.Offset >= p.end || e.InnerOffset < 0 || e.InnerOffset > 1<<40 || e.EndOffset < 0 || e.EndOffset > p.end:
		return fmt.Errorf("a chunk at %d+%d to %d of %d", e.Offset, e.InnerOffset, e.EndOffset, p.end)
	case e.EndOffset != 0 && e.EndOffset <= e.Offset:
		return fmt.Errorf("a chunk from %d to %d", e.Offset, e.EndOffset)
	case len(p.ix.Chunks) >= 1<<30:
		return errors.New("too many chunks")
	}
	p.ix.Chunks = append(p.ix.Chunks, Chunk{Off: p.have, Size: size, Digest: digest, Start: e.Offset, Inner: e.InnerOffset})
	p.ends = append(p.ends, e.EndOffset)
	p.have += size
	c.Chunks++
	return nil
}

// closeFile sees to it that the file before has all its chunks, and makes its key.
func (p *tocParser) closeFile() error {
	if !p.open {
		return nil
	}
	p.open = false
	if p.ours {
		return nil
	}
	c := &p.ix.Contents[len(p.ix.Contents)-1]
	if p.have != c.Size {
		return noTOC("chunks of %d bytes for a file of %d", p.have, c.Size)
	}
	h := sha256.New()
	io.WriteString(h, "pex chunks 1")
	for _, ch := range p.ix.Chunks[c.FirstChunk:] {
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(ch.Size)))
		h.Write(ch.Digest[:])
	}
	h.Sum(c.Key[:0])
	return nil
}

// setEnds bounds every chunk's member: where the TOC doesn't say it, the next one that is mentioned ends it.
func (p *tocParser) setEnds() error {
	starts := make([]int64, 0, len(p.ix.Chunks)+1)
	for _, c := range p.ix.Chunks {
		starts = append(starts, c.Start)
	}
	starts = append(starts, p.end)
	slices.Sort(starts)
	starts = slices.Compact(starts)
	for i := range p.ix.Chunks {
		c := &p.ix.Chunks[i]
		k, _ := slices.BinarySearch(starts, c.Start+1)
		c.End = starts[k]
		if e := p.ends[i]; e != 0 {
			if e > c.End {
				return noTOC("a chunk from %d to %d has another in it", c.Start, e)
			}
			c.End = e
		}
	}
	return nil
}
