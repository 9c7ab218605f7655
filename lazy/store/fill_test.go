package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const testKey = Key("00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff")

func openStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "cache"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// content is the bytes that a test's image will have.
func content(blocks int) []byte {
	r := rand.New(rand.NewPCG(1, uint64(blocks)))
	b := make([]byte, blocks*BlockSize)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func create(t *testing.T, s *Store, size int) *Image {
	t.Helper()
	im, err := s.Create(Info{Key: testKey, Size: int64(size), UUID: [16]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Publish(im); err != nil {
		t.Fatal(err)
	}
	return im
}

// naiveRoot is the Merkle root by the definition: hash blocks of 128 hashes, padded with zeros, until one is left.
func naiveRoot(b []byte) string {
	var level [][]byte
	for ; len(b) > 0; b = b[BlockSize:] {
		h := sha256.Sum256(b[:BlockSize])
		level = append(level, h[:])
	}
	for {
		var up [][]byte
		for ; len(level) > 0; level = level[min(128, len(level)):] {
			block := make([]byte, BlockSize)
			copy(block, bytes.Join(level[:min(128, len(level))], nil))
			h := sha256.Sum256(block)
			up = append(up, h[:])
		}
		if len(up) == 1 {
			return hex.EncodeToString(up[0])
		}
		level = up
	}
}

// TestSealDisorder fills an image in disorder, whole blocks and parts of them, and seals it.
func TestSealDisorder(t *testing.T) {
	for _, blocks := range []int{1, 127, 128, 129, 512, 128*128 + 1} {
		s := openStore(t)
		want := content(blocks)
		im := create(t, s, len(want))
		for i, b := range rand.New(rand.NewPCG(2, 2)).Perm(blocks) {
			off := int64(b) * BlockSize
			p := want[off:][:BlockSize]
			var err error
			if i%3 == 0 { // in two parts
				err = errors.Join(im.PutPart(off, p[:1000]), im.PutPart(off+1000, p[1000:]))
				if im.Has(off, 1) {
					t.Fatalf("block %d is present by a part", b)
				}
				err = errors.Join(err, im.FinishBlock(off, BlockSize))
			} else {
				err = im.Put(off, p)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if im.State() != Complete {
			t.Fatal(im.State())
		}
		if err := im.Seal(); err != nil {
			t.Fatal(err)
		}
		if got, want := im.Root(), naiveRoot(want); got != want {
			t.Errorf("%d blocks: root %s, want %s", blocks, got, want)
		}
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
		v, err := OpenView(s.ImageDir(testKey))
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := v.File().ReadAt(got, 0); err != nil || !bytes.Equal(got, want) || !v.Complete() {
			t.Errorf("%d blocks: other bytes, %v", blocks, err)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReboot damages an unfinished image as a power cut can, and opens it in another boot: only what is right stays present.
func TestReboot(t *testing.T) {
	s := openStore(t)
	want := content(300)
	im := create(t, s, len(want))
	if err := im.Put(0, want[:200*BlockSize]); err != nil {
		t.Fatal(err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(s.ImageDir(testKey), "image.erofs"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	// block 7 never reached the disk, block 9 only in part
	if _, err := f.WriteAt(make([]byte, BlockSize), 7*BlockSize); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 100), 9*BlockSize+4000-100); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	same, err := s.Image(context.Background(), testKey)
	if err != nil {
		t.Fatal(err)
	}
	if !same.Has(0, 200*BlockSize) {
		t.Error("within one boot the map is trusted")
	}
	same.Close()

	other := &Store{dir: s.dir, boot: strings.Repeat("x", bootLen)}
	im, err = other.Image(context.Background(), testKey)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	for b := range int64(300) {
		if got, want := im.Has(b*BlockSize, BlockSize), b < 200 && b != 7 && b != 9; got != want {
			t.Errorf("block %d: present %v, want %v", b, got, want)
		}
	}
	if im.Present() != 198*BlockSize {
		t.Errorf("%d bytes are present", im.Present())
	}
	if im.present.boot() != other.boot {
		t.Error("the map is still of the old boot")
	}
}

func TestPresenceAgainstNaive(t *testing.T) {
	name := filepath.Join(t.TempDir(), "map")
	const blocks = 1000
	if err := createMap(name, blocks, strings.Repeat("b", bootLen)); err != nil {
		t.Fatal(err)
	}
	p, err := openMap(name, blocks*BlockSize, true)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	var naive [blocks]bool
	r := rand.New(rand.NewPCG(3, 3))
	for range 2000 {
		first := r.Int64N(blocks)
		n := 1 + r.Int64N(min(130, blocks-first))
		if r.IntN(3) == 0 {
			fresh := int64(0)
			for b := first; b < first+n; b++ {
				if !naive[b] {
					fresh++
				}
				naive[b] = true
			}
			if got := p.set(first, n); got != fresh {
				t.Fatalf("set %d+%d: %d fresh, want %d", first, n, got, fresh)
			}
		} else if r.IntN(4) == 0 {
			p.clear(first)
			naive[first] = false
		}
		all := true
		for b := first; b < first+n; b++ {
			all = all && naive[b]
		}
		if got := p.hasAll(first, first+n-1); got != all {
			t.Fatalf("hasAll %d+%d: %v, want %v", first, n, got, all)
		}
	}
}

func TestSecondWriter(t *testing.T) {
	s := openStore(t)
	if err := s.Lock(); err != nil {
		t.Fatal(err)
	}
	other, err := Open(s.Dir())
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Lock(); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "held by process") {
		t.Errorf("second lock: %v", err)
	}
	if held, err := other.Locked(); err != nil || !held {
		t.Error(held, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if held, err := other.Locked(); err != nil || held {
		t.Error(held, err)
	}
}

func TestOtherVersion(t *testing.T) {
	s := openStore(t)
	if err := os.WriteFile(filepath.Join(s.Dir(), "version"), []byte("pex cache 99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.Dir()); err == nil || !strings.Contains(err.Error(), "pex cache 99") {
		t.Errorf("got %v", err)
	}
}

func TestSpool(t *testing.T) {
	s := openStore(t)
	sp, err := s.NewSpool()
	if err != nil {
		t.Fatal(err)
	}
	b := content(4)
	if _, err := sp.Data.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	var leaves []byte
	for i := range 4 {
		h := sha256.Sum256(b[i*BlockSize:][:BlockSize])
		leaves = append(leaves, h[:]...)
	}
	if _, err := sp.Leaves.WriteAt(leaves, 0); err != nil {
		t.Fatal(err)
	}
	digest := string(testKey)
	if err := s.KeepSpool(sp, digest); err != nil {
		t.Fatal(err)
	}
	if _, err := sp.Data.WriteAt([]byte("lost"), BlockSize); err != nil {
		t.Fatal(err)
	}
	sp.Close()
	s.boot = strings.Repeat("x", len(s.boot)) // of another run of the machine
	if sp, err = s.LayerSpool(digest); err != nil {
		t.Fatal(err)
	}
	defer sp.Close()
	if _, ok := sp.LeavesOf(0, 5000); ok {
		t.Error("a content that was lost is taken for present")
	}
	got, ok := sp.LeavesOf(2*BlockSize, 2*BlockSize)
	if !ok || !bytes.Equal(got, leaves[64:]) {
		t.Error("a content that wasn't lost is gone")
	}
	im := create(t, s, 2*BlockSize)
	defer im.Close()
	if err := im.Clone(0, sp.Data, 2*BlockSize, 2*BlockSize, got); err != nil {
		t.Fatal(err)
	}
	if err := im.Seal(); err != nil {
		t.Fatal(err)
	}
	if im.Root() != naiveRoot(b[2*BlockSize:]) {
		t.Error("the clone has another root")
	}
	if err := s.DropLayer(digest); err != nil {
		t.Fatal(err)
	}
	if _, err := s.LayerSpool(digest); !errors.Is(err, ErrNotCached) {
		t.Errorf("of a spool that was dropped: %v", err)
	}
	if all, err := s.Layers(); err != nil || len(all) != 0 {
		t.Errorf("layers %q are left (%v)", all, err)
	}
}

// TestRebootTwice opens an unfinished image in another boot by two at once: both know what is present, and nothing that one of them fills
// is taken back by the other.
func TestRebootTwice(t *testing.T) {
	s := openStore(t)
	want := content(300)
	im := create(t, s, len(want))
	if err := im.Put(0, want[:200*BlockSize]); err != nil {
		t.Fatal(err)
	}
	flip(t, filepath.Join(s.ImageDir(testKey), "image.erofs"), 7*BlockSize)
	im.present.setBoot(strings.Repeat("x", bootLen))
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	first, err := openImage(s.ImageDir(testKey))
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	unlock, err := s.rechecks.Lock(t.Context(), testKey) // the first has begun
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Image(ctx, testKey); !errors.Is(err, context.Canceled) {
		t.Errorf("one who gives up is told %v", err)
	}
	second, err := openImage(s.ImageDir(testKey))
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := first.recheck(t.Context()); err != nil {
		t.Fatal(err)
	}
	first.present.setBoot(s.boot)
	unlock()
	flip(t, filepath.Join(s.ImageDir(testKey), "image.erofs"), 9*BlockSize) // it isn't looked at again
	if err := s.recheck(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	if first.Present() != 199*BlockSize || second.Present() != 199*BlockSize {
		t.Errorf("%d and %d blocks are present", first.Present()/BlockSize, second.Present()/BlockSize)
	}
	if err := first.Put(7*BlockSize, want[7*BlockSize:][:BlockSize]); err != nil {
		t.Fatal(err)
	}
	if err := second.Put(200*BlockSize, want[200*BlockSize:]); err != nil {
		t.Fatal(err)
	}
	if first.State() != Complete || second.State() != Complete {
		t.Errorf("%s, %s", first.State(), second.State())
	}
}

// TestPutBlobAgain leaves a blob alone that is there, for it may be on disk for good, and replaces one with other bytes.
func TestPutBlobAgain(t *testing.T) {
	s := openStore(t)
	name, err := s.PutBlob([]byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(s.dir, "blobs", name)
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutBlob([]byte("{}")); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(file); err != nil || !os.SameFile(before, after) {
		t.Errorf("the blob was written again: %v", err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutBlob([]byte("{}")); err != nil {
		t.Fatal(err)
	}
	if b, err := s.Blob(name); err != nil || string(b) != "{}" {
		t.Errorf("a blob that had lost its bytes is %q, %v", b, err)
	}
}
