package disk_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math/big"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pexfs/pex/erofs/disk"
)

// TestCompressForms pins where each field lies, by bytes that were written down from erofs_fs.h.
func TestCompressForms(t *testing.T) {
	configs := disk.Configs{LZ4: disk.LZ4Config{MaxDistance: 0x0102, MaxBlocks: 0x0304}, Zstd: disk.ZstdConfig{WindowLog: 17}}
	for _, c := range []struct {
		name   string
		encode func(b []byte)
		want   string
	}{
		{"map header", (&disk.MapHeader{InlineSize: 0x0102, Advise: 0x0304, Algorithms: 5, ClusterBits: 6}).Encode, "0000" + "0201" + "0403" + "05" + "06"},
		{"head", (&disk.Entry{Kind: disk.EntryHead1, Offset: 0x0203, Block: 0x04050607, Partial: true}).EncodeFull, "0180" + "0302" + "07060504"},
		{"plain", (&disk.Entry{Kind: disk.EntryPlain, Offset: 0x0203, Block: 0x04050607}).EncodeFull, "0000" + "0302" + "07060504"},
		{"tail", (&disk.Entry{Kind: disk.EntryTail, Back: 5, Ahead: 6}).EncodeFull, "0200" + "0000" + "0500" + "0600"},
		{"tail that tells the number of blocks", (&disk.Entry{Kind: disk.EntryTail, Back: 1, Ahead: 6, Blocks: 31}).EncodeFull, "0200" + "0000" + "1f08" + "0600"},
		{"configuration of LZ4", func(b []byte) { copy(b, configs.Append(nil, 1<<disk.AlgorithmLZ4)) }, "0e00" + "0201" + "0403" + zeros(10)},
		{"configuration of Zstandard", func(b []byte) { copy(b, configs.Append(nil, 1<<disk.AlgorithmZstd)) }, "0600" + "00" + "07" + zeros(4)},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bytes.Repeat([]byte{0xee}, len(c.want)/2)
			c.encode(b)
			if got := hex.EncodeToString(b); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// TestClusterEntries pins the index of a compressed cluster whose last block isn't full, and of one that isn't compressed.
func TestClusterEntries(t *testing.T) {
	for _, c := range []struct {
		name       string
		compressed bool
		size       int64
		blocks     uint16
		want       []disk.Entry
	}{
		{"compressed", true, 3*4096 + 5, 2, []disk.Entry{
			{Kind: disk.EntryHead1, Block: 9}, {Kind: disk.EntryTail, Back: 1, Blocks: 2, Ahead: 2}, {Kind: disk.EntryTail, Back: 2, Ahead: 1}, {Kind: disk.EntryPlain, Offset: 5},
		}},
		{"compressed whole blocks", true, 3 * 4096, 2, []disk.Entry{
			{Kind: disk.EntryHead1, Block: 9}, {Kind: disk.EntryTail, Back: 1, Blocks: 2, Ahead: 2}, {Kind: disk.EntryTail, Back: 2, Ahead: 1},
		}},
		{"plain", false, 4096 + 5, 2, []disk.Entry{{Block: 9}, {Block: 10}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := make([]byte, 100)
			got := make([]disk.Entry, disk.ClusterEntries(b, c.compressed, c.size, 9, c.blocks))
			for i := range got {
				got[i].DecodeFull(b[i*disk.FullEntrySize:])
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestPacks decodes compact indexes: 2 or 16 entries of 14 bits in units of 16 or 14, and the number of a block.
func TestPacks(t *testing.T) {
	const head, tail, blocks = disk.EntryHead1 << 12, disk.EntryTail << 12, 1 << 11
	type entries = []disk.Entry
	for _, c := range []struct {
		name   string
		big    bool
		packed []uint16 // the others are tails
		want   entries
	}{
		{"clusters of a block", false, []uint16{head | 5, tail | 1, disk.EntryPlain<<12 | 6, head | 7},
			entries{{Kind: disk.EntryHead1, Offset: 5, Block: 101}, {Kind: disk.EntryTail}, {Offset: 6, Block: 102}, {Kind: disk.EntryHead1, Offset: 7, Block: 103}}},
		{"big clusters", true, []uint16{head | 5, tail | blocks | 3, tail | 2, head, head, tail | blocks | 2, head},
			entries{{Kind: disk.EntryHead1, Offset: 5, Block: 100}, {Kind: disk.EntryTail, Blocks: 3}, {Kind: disk.EntryTail}, {Kind: disk.EntryHead1, Block: 103},
				{Kind: disk.EntryHead1, Block: 104}, {Kind: disk.EntryTail, Blocks: 2}, {Kind: disk.EntryHead1, Block: 106}}},
		{"a cluster that began before", true, []uint16{tail | blocks | 3, head}, entries{{Kind: disk.EntryTail, Blocks: 3}, {Kind: disk.EntryHead1, Block: 103}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			// as one number, the first entry lowest
			sum := big.NewInt(100)
			for i := 15; i >= 0; i-- {
				v := uint16(tail)
				if i < len(c.packed) {
					v = c.packed[i]
				}
				sum.Or(sum.Lsh(sum, 14), big.NewInt(int64(v)))
			}
			b := sum.FillBytes(make([]byte, disk.Pack2Size))
			for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
				b[i], b[j] = b[j], b[i]
			}
			p := disk.DecodePack(b)
			got := make(entries, len(c.want))
			for i := range got {
				got[i] = p.Entry(i, c.big)
			}
			if d := cmp.Diff(c.want, got); d != "" || p.Len() != 16 {
				t.Errorf("%d entries\n%s", p.Len(), d)
			}
			b = make([]byte, disk.Pack4Size)
			for i, v := range c.packed[:2] {
				binary.LittleEndian.PutUint16(b[2*i:], v)
			}
			b[4] = 100
			p = disk.DecodePack(b)
			if d := cmp.Diff(c.want[:2], entries{p.Entry(0, c.big), p.Entry(1, c.big)}); d != "" || p.Len() != 2 {
				t.Errorf("%d entries\n%s", p.Len(), d)
			}
		})
	}
}

// TestDecodeConfigs decodes good and bad configurations.
func TestDecodeConfigs(t *testing.T) {
	good := disk.Configs{LZ4: disk.LZ4Config{MaxDistance: 65535, MaxBlocks: 31}, Zstd: disk.ZstdConfig{WindowLog: 17}}
	const both = 1<<disk.AlgorithmLZ4 | 1<<disk.AlgorithmZstd
	b := good.Append(nil, both)
	if got, ok := disk.DecodeConfigs(b, both); !ok || got != good {
		t.Errorf("%+v, %t", got, ok)
	}
	if got, ok := disk.DecodeConfigs(nil, 0); !ok || got != (disk.Configs{}) {
		t.Errorf("none: %+v, %t", got, ok)
	}
	for n := range b {
		if _, ok := disk.DecodeConfigs(b[:n], both); ok {
			t.Errorf("%d bytes of %d are taken", n, len(b))
		}
	}
	for at, v := range map[int]byte{0: 13, 1: 0xff, 16: 5, 18: 1, 19: 11} { // sizes; the frames' format; the window
		bad := bytes.Clone(b)
		bad[at] = v
		if got, ok := disk.DecodeConfigs(bad, both); ok {
			t.Errorf("%#x at %d is taken: %+v", v, at, got)
		}
	}
}
