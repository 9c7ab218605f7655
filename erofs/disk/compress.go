package disk

import "encoding/binary"

// Compressed files: Linux's fs/erofs/erofs_fs.h and zmap.c. A file is cut into logical clusters of a block each, and an index has an
// entry for each. Runs of them are compressed to physical clusters of whole blocks, zeros before the compressed bytes.
const (
	LayoutFull    = 1 // compressed, with an index of 8 bytes an entry
	LayoutCompact = 3 // the same, with an index of 2 and 4 bytes

	IncompatZeroPadding = 1 << 0 // compressed bytes end where their physical cluster ends
	IncompatConfigs     = 1 << 1 // configurations of the algorithms follow the superblock; big physical clusters are possible

	MaxCluster         = 1 << 20  // bytes of a physical cluster
	MaxClusterContents = 12 << 20 // bytes that one may hold decompressed

	MapHeaderSize = 8 // behind the inode and its attributes, on a multiple of 8
	FullIndexGap  = 8 // unused, between the header and a full index
	FullEntrySize = 8
)

// Algorithms of a MapHeader, and bits of Super.Algorithms.
const (
	AlgorithmLZ4  = 0
	AlgorithmZstd = 3
)

// Bits of MapHeader.Advise.
const (
	AdviseCompact2    = 1 << 0 // a compact index has entries of 2 bytes, not only of 4; a full one is of another kind
	AdviseBig1        = 1 << 1 // clusters of kind EntryHead1 may have several blocks
	AdviseBig2        = 1 << 2 // of kind EntryHead2
	AdviseInline      = 1 << 3 // the last cluster follows the index
	AdviseInterlaced  = 1 << 4 // plain clusters lie rotated in their blocks
	AdviseFragment    = 1 << 5 // the file's end is in the packed inode
	AdviseAllFragment = 1 << 7 // of MapHeader.ClusterBits: the whole file is
)

// Kinds of entries of an index.
const (
	EntryPlain = 0 // what begins here isn't compressed
	EntryHead1 = 1 // what begins here is compressed by the header's first algorithm
	EntryTail  = 2 // nothing begins here
	EntryHead2 = 3
)

// MapHeader begins what follows a compressed inode and its attributes.
type MapHeader struct {
	InlineSize  uint16 // of the last cluster, with AdviseInline
	Advise      uint16
	Algorithms  uint8 // of Head1 in the lower 4 bits, of Head2 in the upper ones
	ClusterBits uint8 // a logical cluster is 1<<(this & 15) blocks
}

// Encode writes the header over the first MapHeaderSize bytes of b.
func (h *MapHeader) Encode(b []byte) {
	binary.LittleEndian.PutUint16(b, 0)
	binary.LittleEndian.PutUint16(b[2:], h.InlineSize)
	binary.LittleEndian.PutUint16(b[4:], h.Advise)
	b[6], b[7] = h.Algorithms, h.ClusterBits
}

// Decode reads the header from the first MapHeaderSize bytes of b.
func (h *MapHeader) Decode(b []byte) {
	*h = MapHeader{binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint16(b[4:]), b[6], b[7]}
}

// MapOffset is where in the image the MapHeader of an inode is whose attributes end at end.
func MapOffset(end int64) int64 { return (end + 7) &^ 7 }

// FullIndexOffset is where its index begins in LayoutFull.
func FullIndexOffset(end int64) int64 { return MapOffset(end) + MapHeaderSize + FullIndexGap }

// Entry is an entry of an index.
type Entry struct {
	Kind   uint8
	Offset uint16 // where in the logical cluster something begins
	Block  uint32 // the first one of what begins here
	Blocks uint16 // of an EntryTail, the first after a head of big clusters: how many blocks that has; else 0
	Back   uint16 // of an EntryTail: how far the head is
	Ahead  uint16 // of an EntryTail: how far the next head is
	// Partial says that only a part of the cluster's contents are this file's.
	Partial bool
}

const (
	entryBlocks  = 1 << 11 // instead of Back, which is 1: the number of blocks
	entryPartial = 1 << 15
)

// EncodeFull writes the entry of a full index over the first FullEntrySize bytes of b. Of an EntryTail, Offset is not written.
func (e *Entry) EncodeFull(b []byte) {
	le := binary.LittleEndian
	advise := uint16(e.Kind)
	if e.Partial {
		advise |= entryPartial
	}
	le.PutUint16(b, advise)
	if e.Kind != EntryTail {
		le.PutUint16(b[2:], e.Offset)
		le.PutUint32(b[4:], e.Block)
		return
	}
	back := e.Back
	if e.Blocks > 0 {
		back = entryBlocks | e.Blocks
	}
	le.PutUint16(b[2:], 0)
	le.PutUint16(b[4:], back)
	le.PutUint16(b[6:], e.Ahead)
}

// DecodeFull reads an entry of a full index from the first FullEntrySize bytes of b.
func (e *Entry) DecodeFull(b []byte) {
	le := binary.LittleEndian
	advise := le.Uint16(b)
	*e = Entry{Kind: uint8(advise & 3), Partial: advise&entryPartial != 0}
	if e.Kind != EntryTail {
		e.Offset, e.Block = le.Uint16(b[2:]), le.Uint32(b[4:])
		return
	}
	e.Back, e.Ahead = le.Uint16(b[4:]), le.Uint16(b[6:])
	if e.Back&entryBlocks != 0 {
		e.Back, e.Blocks = 1, e.Back&^entryBlocks
	}
}

// ClusterEntries writes the entries of a full index for size bytes of a file that begin with a logical cluster, stored in blocks
// blocks from block on, and gives how many entries that are. If the bytes were compressed they are more than a block; if not, each of
// their blocks has an entry of its own. Where compressed bytes end within a block, which must be the file's last, its entry says so.
// The last argument is at most 2,047.
func ClusterEntries(b []byte, compressed bool, size int64, block uint32, blocks uint16) int {
	n := int((size + BlockSize - 1) / BlockSize)
	whole := int(size / BlockSize)
	for i := range n {
		e := Entry{Kind: EntryPlain, Block: block + uint32(i)}
		switch {
		case !compressed:
		case i == 0:
			e.Kind = EntryHead1
		case i == whole:
			e = Entry{Kind: EntryPlain, Offset: uint16(size % BlockSize)}
		default:
			e = Entry{Kind: EntryTail, Back: uint16(i), Ahead: uint16(whole - i)}
			if i == 1 {
				e.Blocks = blocks
			}
		}
		e.EncodeFull(b[i*FullEntrySize:])
	}
	return n
}

// Pack is a group of entries of a compact index.
type Pack struct {
	b       []byte
	n, bits int
}

// Sizes of packs, which are aligned to them.
const (
	Pack4Size = 8  // 2 entries of 4 bytes
	Pack2Size = 32 // 16 entries of 2 bytes
)

// DecodePack makes a Pack of Pack4Size or Pack2Size bytes.
func DecodePack(b []byte) Pack {
	p := Pack{b, 2, 16}
	if len(b) == Pack2Size {
		p.n, p.bits = 16, 14
	}
	return p
}

// Len is the number of entries.
func (p Pack) Len() int { return p.n }

// raw gives what is packed of entry i: 12 bits and its kind.
func (p Pack) raw(i int) (low uint16, kind uint8) {
	at := i * p.bits
	// the block number behind the entries makes this read safe
	v := binary.LittleEndian.Uint32(p.b[at/8:]) >> (at % 8)
	return uint16(v & 0xfff), uint8(v >> 12 & 3)
}

// Entry gives entry i. Back and Ahead are not decoded. The number of a first block is counted from that of the pack, through the
// entries before; big says that clusters may have several blocks.
func (p Pack) Entry(i int, big bool) Entry {
	low, kind := p.raw(i)
	if kind == EntryTail {
		e := Entry{Kind: kind}
		if low&entryBlocks != 0 {
			e.Blocks = low &^ entryBlocks
		}
		return e
	}
	block := binary.LittleEndian.Uint32(p.b[len(p.b)-4:])
	if !big {
		block++ // that of the pack is the last one before it
	}
	for j := range i {
		low, kind := p.raw(j)
		switch {
		case kind != EntryTail:
			// of a big cluster's blocks, the next entry tells
			if next, kind := p.raw(j + 1); !big || kind != EntryTail || next&entryBlocks == 0 {
				block++
			}
		case big && low&entryBlocks != 0:
			block += uint32(low &^ entryBlocks)
		}
	}
	return Entry{Kind: kind, Offset: low, Block: block}
}

// Sizes of configurations of algorithms, which follow the superblock and its extension in the order of their numbers, each on a multiple
// of 4 with its size, 16 bits, before it.
const (
	LZ4ConfigSize  = 14
	ZstdConfigSize = 6
)

// ConfigOffset is where in block 0 configurations begin.
func (s *Super) ConfigOffset() int { return SuperOffset + SuperSize + 16*int(s.ExtSlots) }

// Configs are those of the algorithms that a superblock names. Of others than these two they have nothing.
type Configs struct {
	LZ4  LZ4Config
	Zstd ZstdConfig
}

// DecodeConfigs reads the configurations of a set of algorithms from b, where they begin, and tells whether they are all there.
func DecodeConfigs(b []byte, algorithms uint16) (c Configs, ok bool) {
	for a := 0; algorithms>>a != 0; a++ {
		if algorithms>>a&1 == 0 {
			continue
		}
		if len(b) < 2 {
			return c, false
		}
		n := int(binary.LittleEndian.Uint16(b))
		next := (2 + n + 3) &^ 3
		if next > len(b) {
			return c, false
		}
		data := b[2 : 2+n]
		b = b[next:]
		switch {
		case a == AlgorithmLZ4 && n >= LZ4ConfigSize:
			c.LZ4 = LZ4Config{binary.LittleEndian.Uint16(data), binary.LittleEndian.Uint16(data[2:])}
		case a == AlgorithmZstd && n >= ZstdConfigSize && data[0] == 0 && data[1] <= 10:
			c.Zstd = ZstdConfig{data[1] + 10}
		case a == AlgorithmLZ4 || a == AlgorithmZstd:
			return c, false
		}
	}
	return c, true
}

// Append appends the configurations of a set of the two algorithms.
func (c Configs) Append(b []byte, algorithms uint16) []byte {
	if algorithms>>AlgorithmLZ4&1 != 0 {
		b = c.LZ4.append(b)
	}
	if algorithms>>AlgorithmZstd&1 != 0 {
		b = c.Zstd.append(b)
	}
	return b
}

// LZ4Config configures LZ4.
type LZ4Config struct {
	MaxDistance uint16 // between what is copied and where to, in bytes
	MaxBlocks   uint16 // of a physical cluster
}

func (c LZ4Config) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, LZ4ConfigSize)
	b = binary.LittleEndian.AppendUint16(b, c.MaxDistance)
	b = binary.LittleEndian.AppendUint16(b, c.MaxBlocks)
	return append(b, make([]byte, LZ4ConfigSize-4)...)
}

// ZstdConfig configures Zstandard.
type ZstdConfig struct {
	WindowLog uint8 // log2 of the largest window in bytes, 10 to 20
}

func (c ZstdConfig) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, ZstdConfigSize)
	return append(b, 0, c.WindowLog-10, 0, 0, 0, 0)
}
