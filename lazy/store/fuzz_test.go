package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const fuzzBoot = "01234567-89ab-cdef-0123-456789abcdef"

// mapBytes is a map file as createMap and set leave it.
func mapBytes(blocks int64, boot string, bits ...uint64) []byte {
	b := make([]byte, mapHeader)
	copy(b, mapMagic)
	binary.LittleEndian.PutUint64(b[8:], uint64(blocks))
	copy(b[bootOff:], boot)
	for i := range mapSize(blocks)/wordBytes - mapHeader/wordBytes {
		var w uint64
		if int(i) < len(bits) {
			w = bits[i]
		}
		b = binary.NativeEndian.AppendUint64(b, w)
	}
	return b
}

// FuzzMap opens maps of any bytes for images of any size. What is opened says what the bytes say, for the blocks there are and no
// others, and what is marked can be read in the file.
func FuzzMap(f *testing.F) {
	f.Add(mapBytes(3, fuzzBoot, 5), int64(3*BlockSize), int64(1), int64(2))
	f.Add(mapBytes(64, fuzzBoot, 1<<63), int64(64*BlockSize), int64(0), int64(64))
	f.Add(mapBytes(65, fuzzBoot, 1<<63, 1), int64(65*BlockSize), int64(63), int64(2))
	f.Add(mapBytes(65, fuzzBoot, 0, 2), int64(65*BlockSize), int64(0), int64(1)) // a block behind the last
	f.Add(mapBytes(0, fuzzBoot), int64(0), int64(0), int64(0))
	f.Add(mapBytes(64, fuzzBoot), int64(64*BlockSize+1), int64(0), int64(0))
	f.Add(mapBytes(-1, fuzzBoot)[:mapHeader], int64(-BlockSize), int64(0), int64(0))
	f.Add(mapBytes(3, fuzzBoot)[:mapHeader+3], int64(3*BlockSize), int64(0), int64(0))
	f.Add([]byte(mapMagic), int64(BlockSize), int64(0), int64(0))
	f.Fuzz(func(t *testing.T, file []byte, size, first, n int64) {
		name := filepath.Join(t.TempDir(), "map")
		if err := os.WriteFile(name, file, 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := openMap(name, size, true)
		if err != nil {
			if _, err := openMap(name, size, false); err == nil {
				t.Error("opens to be read and not to be written")
			}
			return
		}
		if size <= 0 || size%BlockSize != 0 || p.blocks != size/BlockSize {
			t.Fatalf("a map of %d blocks for %d bytes", p.blocks, size)
		}
		bit := func(b int64) bool {
			return binary.NativeEndian.Uint64(file[mapHeader+b/wordBlocks*wordBytes:])>>(b%wordBlocks)&1 != 0
		}
		var count int64
		for b := range p.blocks {
			if p.has(b) != bit(b) {
				t.Fatalf("block %d: present %v, the file says %v", b, p.has(b), bit(b))
			}
			if bit(b) {
				count++
			}
		}
		if p.count() != count {
			t.Errorf("%d of %d blocks are present, and it counts %d", count, p.blocks, p.count())
		}
		if p.hasAll(0, p.blocks-1) != (count == p.blocks) {
			t.Errorf("all are present: %v, with %d of %d", p.hasAll(0, p.blocks-1), count, p.blocks)
		}
		if first < 0 || first >= p.blocks || n <= 0 || n > p.blocks-first {
			first, n = p.blocks-1, 1
		}
		if fresh := p.set(first, n); p.count() != count+fresh || !p.hasAll(first, first+n-1) {
			t.Errorf("marking %d+%d: %d fresh of %d, then %d", first, n, fresh, count, p.count())
		}
		if err := p.close(); err != nil {
			t.Fatal(err)
		}
		again, err := openMap(name, size, false)
		if err != nil {
			t.Fatalf("opening again: %v", err)
		}
		defer again.close()
		for b := range again.blocks {
			if want := bit(b) || b >= first && b < first+n; again.has(b) != want {
				t.Fatalf("block %d after marking %d+%d: present %v, want %v", b, first, n, again.has(b), want)
			}
		}
	})
}

// FuzzMerkle damages a tree's file, or replaces it. What it vouches for afterwards is what it was.
func FuzzMerkle(f *testing.F) {
	f.Add(uint16(1), uint32(BlockSize), []byte{1})
	f.Add(uint16(129), uint32(2*BlockSize+5), []byte("xyz"))
	f.Add(uint16(300), uint32(BlockSize), bytes.Repeat([]byte{7}, 2*BlockSize))
	f.Add(uint16(300), uint32(0), []byte("another superblock"))
	f.Fuzz(func(t *testing.T, blocks uint16, at uint32, damage []byte) {
		n := int64(blocks%1024) + 1
		name := filepath.Join(t.TempDir(), "merkle")
		if err := createMerkle(name, n, [16]byte{1}); err != nil {
			t.Fatal(err)
		}
		m, err := openMerkle(name, n*BlockSize)
		if err != nil {
			t.Fatal(err)
		}
		defer m.close()
		fresh := newTreeHash()
		for b := range n {
			h := sha256.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(b)))
			copy(m.leaf(b), h[:])
			fresh.add(h)
		}
		root := m.finish()
		if fresh.root() != root {
			t.Fatal("the root by levels is not that of a stream of leaves")
		}
		if bad := m.verify(root); len(bad) > 0 {
			t.Fatalf("undamaged, and can't vouch for %v", bad)
		}
		right := bytes.Clone(m.mem)
		if off := min(int64(at), int64(len(m.mem))); len(damage) > 0 {
			copy(m.mem[off:], damage)
		}
		bad := m.verify(root)
		for i, b := range bad {
			if b < 0 || b > (n-1)/hashesPer || i > 0 && b <= bad[i-1] {
				t.Fatalf("can't vouch for %v of %d blocks of leaves", bad, (n-1)/hashesPer+1)
			}
		}
		leaves := int64(len(m.mem)) - levels(n)[0]*BlockSize
		for b := range levels(n)[0] {
			p := leaves + b*BlockSize
			if !bytes.Equal(m.mem[p:][:BlockSize], right[p:][:BlockSize]) && !slices.Contains(bad, b) {
				t.Errorf("vouches for block %d of leaves, which is damaged", b)
			}
		}
		if bytes.Equal(m.mem[BlockSize:], right[BlockSize:]) != (len(bad) == 0) {
			t.Errorf("can't vouch for %v", bad)
		}
	})
}

// What FuzzImage puts right in its files before it opens them, so that more is tried than their sizes.
const (
	rightMap    = 1 << iota // the map's size and header
	rightMerkle             // the Merkle file's size
	rightLeaves             // the leaf of each block
	rightBoot               // the map is of this boot
)

// FuzzImage opens an image folder of any bytes, to fill it and to view it. What opens holds together: no block is present that isn't
// in the image, and after another boot none that isn't what its leaf says.
func FuzzImage(f *testing.F) {
	info := func(i Info) []byte {
		i.Key = testKey
		b, err := json.Marshal(i)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	all := byte(rightMap | rightMerkle | rightLeaves)
	f.Add(info(Info{Size: 3 * BlockSize, State: Lazy}), []byte{5}, []byte("data"), all)
	f.Add(info(Info{Size: 3 * BlockSize, State: Lazy}), []byte{5}, []byte("data"), all|rightBoot)
	f.Add(info(Info{Size: 3 * BlockSize, State: Lazy}), []byte{7}, []byte("data"), all)
	f.Add(info(Info{Size: 2 * BlockSize, MetaOff: BlockSize, State: Sealed, Root: strings.Repeat("5", 64)}), []byte{3}, []byte{}, all)
	f.Add(info(Info{Size: 64*BlockSize + 1, State: Lazy}), bytes.Repeat([]byte{0xff}, 8), []byte{}, all)
	f.Add(info(Info{Size: 65 * BlockSize, State: Lazy}), bytes.Repeat([]byte{0xff}, 16), []byte{1}, all|rightBoot)
	f.Add(info(Info{}), []byte{}, []byte{}, all)
	f.Add(info(Info{Size: -BlockSize}), []byte{}, []byte{}, all)
	f.Add(info(Info{Size: 1 << 62}), []byte{}, []byte{}, all)
	f.Add([]byte("null"), []byte{}, []byte{}, byte(0))
	f.Fuzz(func(t *testing.T, info, bits, data []byte, right byte) {
		s := &Store{dir: t.TempDir(), boot: fuzzBoot}
		if err := os.Mkdir(s.tmp(), 0o700); err != nil {
			t.Fatal(err)
		}
		dir := s.imageDir(testKey)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		fuzzImage(t, dir, info, bits, data, right)
		im, err := s.Image(context.Background(), testKey)
		if err != nil {
			if _, err := OpenView(dir); err == nil && right&rightMerkle != 0 {
				t.Log("can be viewed, not filled")
			}
			return
		}
		defer im.Close()
		size := im.Info.Size
		if size <= 0 || size%BlockSize != 0 {
			t.Fatalf("an image of %d bytes", size)
		}
		v, err := OpenView(dir)
		if err != nil {
			t.Fatalf("can be filled, not viewed: %v", err)
		}
		defer v.Close()
		checkImage(t, im, v, right&rightBoot == 0)
		// whatever was there, the first block can be written, and is present from then on in both
		block := bytes.Repeat([]byte{9}, BlockSize)
		if err := im.Put(0, block); err != nil {
			t.Fatal(err)
		}
		if h := sha256.Sum256(block); !im.Has(0, 1) || !v.Has(0, BlockSize) || !bytes.Equal(im.Leaves(0, 1), h[:]) {
			t.Error("a block that was put is not there")
		}
		if im.State() == Complete {
			was := im.Info.Root // of an image that was sealed once, and is to become the same again
			err := im.Seal()
			if err != nil && was == "" {
				t.Fatal(err)
			}
			if err == nil && was != "" && im.Root() != was {
				t.Errorf("sealed with root %s, then with %s", was, im.Root())
			}
			if err != nil {
				return
			}
			root, err := MerkleRoot(im.File(), size)
			if err != nil {
				t.Fatal(err)
			}
			if right&rightLeaves != 0 && im.Root() != root {
				t.Errorf("sealed with root %s, its bytes have %s", im.Root(), root)
			}
		}
	})
}

// fuzzImage writes the files of an image.
func fuzzImage(t *testing.T, dir string, info, bits, data []byte, right byte) {
	t.Helper()
	var said struct{ Size int64 }
	_ = json.Unmarshal(info, &said) // what isn't JSON has no size
	size := min(max(said.Size, 0), 4<<20)
	blocks := size / BlockSize
	image := make([]byte, size)
	copy(image, data)
	m := append(mapBytes(blocks, fuzzBoot)[:mapHeader], bits...)
	if right&rightBoot == 0 {
		copy(m[bootOff:], strings.Repeat("0", bootLen))
	}
	if right&rightMap != 0 {
		m = append(m, make([]byte, max(0, mapSize(blocks)-int64(len(m))))...)[:mapSize(blocks)]
	}
	tree := make([]byte, BlockSize)
	if right&rightMerkle != 0 {
		tree = append(tree, make([]byte, merkleSize(blocks)-BlockSize)...)
	}
	if at := int64(len(tree)) - levels(blocks)[0]*BlockSize; right&rightLeaves != 0 && at > 0 {
		for b := range blocks {
			h := sha256.Sum256(image[b*BlockSize:][:BlockSize])
			copy(tree[at+b*hashSize:], h[:])
		}
	}
	for name, b := range map[string][]byte{"info.json": info, "image.erofs": image, "map": m, "merkle": tree} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// checkImage checks that an image and its view agree with each other and with themselves.
func checkImage(t *testing.T, im *Image, v *View, rebooted bool) {
	t.Helper()
	size := im.Info.Size
	var present int64
	for off := int64(0); off < size; off += BlockSize {
		has := im.Has(off, BlockSize)
		if has != v.Has(off, 1) {
			t.Fatalf("the block at %d: %v to the filler, %v to the view", off, has, v.Has(off, 1))
		}
		if !has {
			continue
		}
		present += BlockSize
		if im.Info.State == Sealed || !rebooted {
			continue
		}
		var b [BlockSize]byte
		if _, err := im.File().ReadAt(b[:], off); err != nil {
			t.Fatal(err)
		}
		if h := sha256.Sum256(b[:]); !bytes.Equal(h[:], im.Leaves(off, BlockSize)) {
			t.Errorf("after another boot the block at %d is present and not what its leaf says", off)
		}
	}
	if im.Present() != present || im.Present() > size {
		t.Errorf("%d of %d bytes are present, and it says %d", present, size, im.Present())
	}
	if whole := present == size; (im.State() != Lazy) != whole || v.Complete() != whole || im.Has(0, size) != whole {
		t.Errorf("%d of %d bytes are present: state %s, complete to the view %v", present, size, im.State(), v.Complete())
	}
	d, err := im.Fsck(context.Background(), nil)
	if err == nil {
		for i, b := range d.Blocks {
			if b < 0 || b >= size/BlockSize || i > 0 && b <= d.Blocks[i-1] {
				t.Fatalf("damaged blocks %v of %d", d.Blocks, size/BlockSize)
			}
		}
	}
	_ = v.Sample(5) // its error is right: most of these are not images
	if tree, blocks, root, err := v.Proof(); err == nil {
		tree.Close()
		if blocks != size/BlockSize || !v.Complete() || root != v.Info.Root {
			t.Errorf("the proof is over %d blocks with root %q", blocks, root)
		}
	}
}

// FuzzRecords reads what the folder says of references, manifests, blobs and layers, of any bytes. What it believes is in its form, and is
// what would be written.
func FuzzRecords(f *testing.F) {
	hexHash := strings.Repeat("ab", 32)
	f.Add([]byte(`{"ref":"docker.io/library/x:1","platform":"linux/amd64","manifest":"`+hexHash+`","resolved":"2024-01-02T03:04:05Z"}`), "docker.io/library/x:1", hexHash)
	f.Add([]byte(`{"image":"`+hexHash+`","config":"`+hexHash+`"}`), "", hexHash)
	f.Add([]byte(`{"image":"../../etc","config":"../x"}`), "", hexHash)
	f.Add([]byte(`{"refusal":"no"}`), "", "../"+hexHash[3:])
	f.Add([]byte(`{"key":"`+hexHash+`","size":-1}`), "", hexHash)
	f.Fuzz(func(t *testing.T, b []byte, ref, digest string) {
		s := &Store{dir: t.TempDir(), boot: fuzzBoot}
		if err := os.Mkdir(s.tmp(), 0o700); err != nil {
			t.Fatal(err)
		}
		const platform = "linux/amd64"
		put := func(elem ...string) {
			name := filepath.Join(append([]string{s.dir}, elem...)...)
			if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		good := isHex(digest)
		at := string(testKey)
		if good {
			at = digest
		}
		put("refs", hexName(ref+"\x00"+platform)+".json")
		put("records", at+".json")
		put("blobs", at)
		put("layers", at, "verdict.toc")
		put("images", at, "info.json")

		if r, err := s.Ref(ref, platform); err == nil {
			if r.Ref != ref || r.Platform != platform || !isHex(r.Manifest) {
				t.Errorf("the record of %q is %+v", ref, r)
			}
			if r.Resolved.Year() < 1 || r.Resolved.Year() > 9999 { // JSON has no others
				t.Errorf("resolved at %v", r.Resolved)
			}
			r.Resolved = time.Unix(0, 0).UTC()
			if err := s.PutRef(r); err != nil {
				t.Fatal(err)
			}
			if again, err := s.Ref(ref, platform); err != nil || again.Said() != r.Said() {
				t.Errorf("%+v was kept and is %+v, %v", r, again, err)
			}
		}
		r, err := s.Record(digest)
		if err == nil && (!good || !isHex(string(r.Image))) {
			t.Errorf("the record of %q names image %q", digest, r.Image)
		}
		if err == nil {
			if blob, err := s.Blob(r.Config); err == nil && !isHex(r.Config) {
				t.Errorf("config %q has %d bytes", r.Config, len(blob))
			}
		}
		if got, err := s.Blob(digest); err == nil {
			if h := sha256.Sum256(got); hex.EncodeToString(h[:]) != digest {
				t.Errorf("blob %q is not what it is called", digest)
			}
		}
		if _, known := s.Verdict(digest, "toc"); known && !good {
			t.Errorf("there is a verdict on layer %q", digest)
		}
		if _, err := s.Refs(); err != nil {
			t.Error(err)
		}
		images, err := s.Images()
		if err != nil {
			t.Error(err)
		}
		for _, i := range images {
			if string(i.Key) != at {
				t.Errorf("image %q is listed, in folder %q", i.Key, at)
			}
		}
		if layers, err := s.Layers(); err != nil || len(layers) != 1 || layers[0] != at {
			t.Errorf("layers %q, %v", layers, err)
		}
	})
}
