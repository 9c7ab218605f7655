package erofs_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/tree"
)

// naive makes an image's metadata from the words of the package comment and from Linux's erofs_fs.h alone, with nothing of the code
// that it judges, in the simplest way there is.
type naive struct {
	t         *tree.Tree
	key       func(tree.Content) [32]byte
	extents   []erofs.Extent
	place     map[tree.Content]int64
	order     []tree.Ino // in the metadata
	parent    map[tree.Ino]tree.Ino
	at        map[tree.Ino]int  // of inodes, in the metadata
	inline    map[tree.Ino]bool // whether the last block is
	behind    map[tree.Ino]int  // of other blocks, in the metadata
	metaBytes int
	metaOff   int64
	size      int64
}

func newNaive(t *tree.Tree, key func(tree.Content) [32]byte) *naive {
	n := &naive{t: t, key: key, place: map[tree.Content]int64{}, parent: map[tree.Ino]tree.Ino{}, at: map[tree.Ino]int{}, inline: map[tree.Ino]bool{}, behind: map[tree.Ino]int{}}
	n.contents()
	n.breadthFirst()
	n.inodes()
	n.size = upTo(n.metaOff+int64(n.metaBytes), 2<<20)
	return n
}

func upTo[N int | int64](n, unit N) N {
	for n%unit != 0 {
		n += unit - n%unit
	}
	return n
}

// contents: from 2 MiB on, the top layer first, then by number; identical ones once; big ones on 2 MiB, others on 4 KiB.
func (n *naive) contents() {
	end := int64(2 << 20)
	for layer := int32(n.t.Layers()) - 1; layer >= 0; layer-- {
		sizes := map[int32]int64{}
		for i := range tree.Ino(n.t.Len()) {
			if a := n.t.Stat(i); a.Type == tree.Regular && a.Size > 0 && a.Content.Layer == layer {
				sizes[a.Content.Index] = a.Size
			}
		}
		var numbers []int32
		for number := range sizes {
			numbers = append(numbers, number)
		}
		slices.Sort(numbers)
		for _, number := range numbers {
			c := tree.Content{Layer: layer, Index: number}
			for _, e := range n.extents {
				if n.key(e.Content) == n.key(c) {
					n.place[c] = e.Off
				}
			}
			if n.place[c] != 0 {
				continue
			}
			unit := int64(4 << 10)
			if sizes[number] >= 2<<20 {
				unit = 2 << 20
			}
			n.place[c] = upTo(end, unit)
			end = n.place[c] + sizes[number]
			n.extents = append(n.extents, erofs.Extent{Content: c, Off: n.place[c], Size: sizes[number]})
		}
	}
	n.metaOff = upTo(end, 4<<10)
}

// breadthFirst: a directory's names follow each other, directories breadth first, a file of several names at the first.
func (n *naive) breadthFirst() {
	seen := map[tree.Ino]bool{0: true}
	n.order = []tree.Ino{0}
	for k := 0; k < len(n.order); k++ {
		for d := range n.t.Children(n.order[k]) {
			if !seen[d.Ino] {
				seen[d.Ino] = true
				n.parent[d.Ino] = n.order[k]
				n.order = append(n.order, d.Ino)
			}
		}
	}
}

// blocks gives the blocks of a directory's or a symlink's data, the last one as long as it is.
func (n *naive) blocks(i tree.Ino) [][]byte {
	switch a := n.t.Stat(i); a.Type {
	case tree.Symlink:
		return [][]byte{[]byte(a.Target)}
	case tree.Dir:
	default:
		return nil
	}
	entries := map[string]tree.Ino{".": i, "..": n.parent[i]}
	names := []string{".", ".."}
	for d := range n.t.Children(i) {
		entries[d.Name] = d.Ino
		names = append(names, d.Name)
	}
	slices.Sort(names)
	var blocks [][]byte
	for len(names) > 0 {
		count, used := 0, 0
		for count < len(names) && used+12+len(names[count]) <= 4096 {
			used += 12 + len(names[count])
			count++
		}
		var heads, text []byte
		for _, name := range names[:count] {
			heads = binary.LittleEndian.AppendUint64(heads, uint64(n.at[entries[name]]/32))
			heads = binary.LittleEndian.AppendUint16(heads, uint16(12*count+len(text)))
			heads = append(heads, map[tree.Type]byte{tree.Regular: 1, tree.Dir: 2, tree.Char: 3, tree.Block: 4, tree.Fifo: 5, tree.Symlink: 7}[n.t.Stat(entries[name]).Type], 0)
			text = append(text, name...)
		}
		block := append(heads, text...)
		if names = names[count:]; len(names) > 0 {
			block = append(block, make([]byte, 4096-len(block))...)
		}
		blocks = append(blocks, block)
	}
	return blocks
}

// attributes gives those that the format has a number for, sorted by name.
func (n *naive) attributes(i tree.Ino) []byte {
	b := make([]byte, 12)
	for name, value := range n.t.Xattrs(i) {
		namespace, rest, _ := strings.Cut(name, ".")
		index := map[string]byte{"user": 1, "trusted": 4, "security": 6}[namespace]
		switch name {
		case "system.posix_acl_access":
			index, rest = 2, ""
		case "system.posix_acl_default":
			index, rest = 3, ""
		default:
			if rest == "" {
				index = 0
			}
		}
		if index == 0 {
			continue
		}
		b = append(b, byte(len(rest)), index)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
		b = append(append(b, rest...), value...)
		b = append(b, make([]byte, upTo(len(b), 4)-len(b))...)
	}
	if len(b) == 12 {
		return nil
	}
	return b
}

// inodes: the root at nid 1, each across no block's end, the last block of its data with it where they fit into one block, which
// may be the next one but for the root; then all other blocks.
func (n *naive) inodes() {
	at := 32
	for _, i := range n.order {
		size := 64 + len(n.attributes(i))
		blocks := n.blocks(i)
		room := 4096 - at%4096
		tail := 0
		if len(blocks) > 0 && len(blocks[len(blocks)-1]) < 4096 {
			tail = len(blocks[len(blocks)-1])
		}
		fits := size+tail <= room
		n.inline[i] = tail > 0 && (fits || i != 0 && size+tail <= 4096)
		if n.inline[i] && !fits || room < 64 {
			at = upTo(at, 4096)
		}
		n.at[i] = at
		at += size
		if n.inline[i] {
			at += tail
		}
		at = upTo(at, 32)
	}
	at = upTo(at, 4096)
	for _, i := range n.order {
		n.behind[i] = at
		at += 4096 * len(n.blocks(i))
		if n.inline[i] {
			at -= 4096
		}
	}
	n.metaBytes = at
}

func (n *naive) meta() []byte {
	m := make([]byte, n.metaBytes)
	le := binary.LittleEndian
	for number, i := range n.order {
		a, attributes, blocks := n.t.Stat(i), n.attributes(i), n.blocks(i)
		layout, start, size := 0, uint32(0), int64(0)
		switch a.Type {
		case tree.Regular:
			if size = a.Size; size > 0 {
				start = uint32(n.place[a.Content] / 4096)
			}
		case tree.Char, tree.Block: // new_encode_dev
			start = a.Minor&0xff | a.Major<<8 | (a.Minor&0xfff00)<<12
		}
		to := n.behind[i]
		for k, b := range blocks {
			size += int64(len(b))
			if k == len(blocks)-1 && n.inline[i] {
				layout = 2
				copy(m[n.at[i]+64+len(attributes):], b)
				continue
			}
			start = uint32((n.metaOff + int64(n.behind[i])) / 4096)
			copy(m[to:], b)
			to += 4096
		}
		b := m[n.at[i]:]
		le.PutUint16(b[0:], uint16(1|layout<<1))
		if len(attributes) > 0 {
			le.PutUint16(b[2:], uint16(1+(len(attributes)-12)/4))
		}
		le.PutUint16(b[4:], map[tree.Type]uint16{tree.Regular: 0o100000, tree.Dir: 0o40000, tree.Symlink: 0o120000, tree.Char: 0o20000, tree.Block: 0o60000, tree.Fifo: 0o10000}[a.Type]|uint16(a.Mode))
		le.PutUint64(b[8:], uint64(size))
		le.PutUint32(b[16:], start)
		le.PutUint32(b[20:], uint32(number)+1)
		le.PutUint32(b[24:], a.UID)
		le.PutUint32(b[28:], a.GID)
		le.PutUint64(b[32:], uint64(a.Mtime.Sec))
		le.PutUint32(b[40:], a.Mtime.Nsec)
		le.PutUint32(b[44:], a.Nlink)
		copy(b[64:], attributes)
	}
	return m
}

func (n *naive) super(uuid [16]byte) []byte {
	block := make([]byte, 4096)
	b, le := block[1024:], binary.LittleEndian
	le.PutUint32(b[0:], 0xE0F5E1E2)
	le.PutUint32(b[8:], 3)  // checksum, mtime
	b[12] = 12              // bits of a block
	le.PutUint16(b[14:], 1) // the root
	le.PutUint64(b[16:], uint64(len(n.order)))
	le.PutUint32(b[36:], uint32(n.size/4096))
	le.PutUint32(b[40:], uint32(n.metaOff/4096))
	copy(b[48:], uuid[:])
	s := &sparse{super: block}
	s.fixChecksum()
	return block
}

// judge compares a layout with the naive image of its tree.
func (fx *fixture) judge(t *testing.T) {
	t.Helper()
	n := newNaive(fx.tree, fx.key)
	s := fx.sparse(t)
	if d := cmp.Diff(append([]erofs.Extent{}, n.extents...), fx.layout.Extents()); d != "" {
		t.Fatalf("extents (-words +layout):\n%s", d)
	}
	if fx.layout.MetaOffset() != n.metaOff || fx.layout.Size() != n.size {
		t.Fatalf("metadata at %d, size %d; by the words at %d, %d", fx.layout.MetaOffset(), fx.layout.Size(), n.metaOff, n.size)
	}
	if !bytes.Equal(s.super, n.super([16]byte{1, 2, 3})) {
		t.Fatal("the superblock is another than that of the words")
	}
	want := n.meta()
	if len(s.meta) != len(want) {
		t.Fatalf("metadata of %d bytes; by the words %d", len(s.meta), len(want))
	}
	for k := range want {
		if s.meta[k] != want[k] {
			at := max(k-8, 0)
			t.Fatalf("metadata differs from byte %d on (nid %d):\n%x, by the words\n%x", k, k/32, s.meta[at:][:min(40, len(want)-at)], want[at:][:min(40, len(want)-at)])
		}
	}
}

// TestLayoutByItsWords compares layouts with what an implementation of the words gives.
func TestLayoutByItsWords(t *testing.T) {
	for _, c := range append(imageCases(), goldenCases()...) {
		t.Run(c.name, func(t *testing.T) { newFixture(t, c.layers...).judge(t) })
	}
	for seed := range uint64(400) {
		t.Run(fmt.Sprintf("tree %d", seed), func(t *testing.T) { newFixture(t, randomLayers(seed)...).judge(t) })
	}
}

// digest is that of a layout's extents and metadata.
func (fx *fixture) digest() [32]byte {
	h := sha256.New()
	for _, e := range fx.layout.Extents() {
		fmt.Fprintln(h, e)
	}
	s := &sparse{metaOff: fx.layout.MetaOffset()}
	if err := fx.layout.WriteTo(s); err != nil {
		panic(err) // memory doesn't fail
	}
	fmt.Fprintln(h, fx.layout.Size(), fx.layout.MetaOffset())
	h.Write(s.super)
	h.Write(s.meta)
	return [32]byte(h.Sum(nil))
}

// TestSameBytes builds and lays out the same layers many times, with one and with more processors, alone and at once. Maps are
// walked in another order each time.
func TestSameBytes(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	for seed := range uint64(30) {
		layers := randomLayers(seed)
		want := newFixture(t, layers...).digest()
		for _, procs := range []int{1, 2, 2 * runtime.NumCPU()} {
			runtime.GOMAXPROCS(procs)
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					if newFixture(t, randomLayers(seed)...).digest() != want {
						t.Errorf("tree %d has other bytes with %d processors", seed, procs)
					}
				})
			}
			wg.Wait()
		}
	}
}

// TestEntryOrder shuffles the entries of layers, where their order has no meaning: what isn't a directory goes by its number.
func TestEntryOrder(t *testing.T) {
	for seed := range uint64(30) {
		layers := randomLayers(seed)
		others := make([][]tree.Entry, len(layers)) // the same memory
		for k, entries := range layers {
			entries = slices.DeleteFunc(entries, func(e tree.Entry) bool { return e.Type == tree.HardLink })
			isOther := func(e tree.Entry) int { return min(int(e.Type), 1) }
			slices.SortStableFunc(entries, func(a, b tree.Entry) int { return isOther(a) - isOther(b) })
			dirs, _ := slices.BinarySearchFunc(entries, 1, func(e tree.Entry, one int) int { return isOther(e) - one })
			layers[k], others[k] = entries, entries[dirs:]
		}
		want := newFixture(t, layers...).digest()
		r := rand.New(rand.NewPCG(seed, 2))
		for range 3 {
			for _, entries := range others {
				r.Shuffle(len(entries), func(i, k int) { entries[i], entries[k] = entries[k], entries[i] })
			}
			if newFixture(t, layers...).digest() != want {
				t.Errorf("tree %d has other bytes when its layers' entries come in another order", seed)
			}
		}
	}
}
