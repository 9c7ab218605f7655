package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// pack makes an image's folder with a pack of these sections of one layer.
func pack(t testing.TB, s *Store, k Key, layer string, sections map[string][]byte) {
	t.Helper()
	if err := os.MkdirAll(s.imageDir(k), 0o700); err != nil {
		t.Fatal(err)
	}
	w, err := s.NewPack(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range sections {
		if err := w.Section(layer, name, func(w io.Writer) error { return second(w.Write(b)) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Keep(k); err != nil {
		t.Fatal(err)
	}
}

// packed gives what packs have of a layer under a name, and whether it could be read to its end.
func packed(t testing.TB, s *Store, layer, name string) (all [][]byte, whole bool) {
	t.Helper()
	whole = true
	err := s.EachPacked(layer, name, func(r io.Reader, size int64) (more bool) {
		b, err := io.ReadAll(r)
		whole = whole && err == nil
		if err == nil && int64(len(b)) != size {
			t.Errorf("%d bytes of %s, and it should have %d", len(b), name, size)
		}
		all = append(all, b)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return all, whole
}

const (
	oneKey = Key("1111111111111111111111111111111111111111111111111111111111111111")
	twoKey = Key("2222222222222222222222222222222222222222222222222222222222222222")
)

func TestPack(t *testing.T) {
	s := openStore(t)
	layer, other := string(testKey), strings.Repeat("a", 64)
	a, b := content(3), bytes.Repeat([]byte("text "), 100_000)
	pack(t, s, oneKey, layer, map[string][]byte{"index.x": a, "rest.x": b, "none": nil})
	pack(t, s, twoKey, layer, map[string][]byte{"index.x": a})
	for _, tt := range []struct {
		name, layer, section string
		want                 [][]byte
	}{
		{"of two images", layer, "index.x", [][]byte{a, a}},
		{"of one", layer, "rest.x", [][]byte{b}},
		{"without bytes", layer, "none", [][]byte{{}}},
		{"another name", layer, "index.y", nil},
		{"another layer", other, "index.x", nil},
		{"no digest", "../" + other[3:], "index.x", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, whole := packed(t, s, tt.layer, tt.section)
			if !whole || len(got) != len(tt.want) {
				t.Fatalf("%d of them, whole %v", len(got), whole)
			}
			for i := range got {
				if !bytes.Equal(got[i], tt.want[i]) {
					t.Error("other bytes")
				}
			}
		})
	}
	if got, err := s.LayerIndex(layer, "x"); err != nil || !bytes.Equal(got, a) {
		t.Errorf("an index in a pack: %d bytes, %v", len(got), err)
	}
	if _, err := s.LayerIndex(layer, "y"); !errors.Is(err, ErrNotCached) {
		t.Errorf("an index that there is none of: %v", err)
	}
	if !s.Packed(oneKey) || s.Packed(testKey) || s.Packed("../1") {
		t.Error("it is not known which images have a pack")
	}
	if err := errors.Join(s.CheckPack(oneKey), s.RemovePack(oneKey), s.RemovePack(oneKey)); err != nil {
		t.Error(err)
	}
	if err := s.CheckPack(oneKey); s.Packed(oneKey) || !errors.Is(err, ErrNotCached) {
		t.Errorf("a pack that was removed: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(s.dir, "tmp")); len(left) != 0 {
		t.Errorf("%v are left", left)
	}
}

// TestPackDamage changes each byte of a pack, and cuts it everywhere: it is noticed, unless all sections can be read as they were, and none
// is read to its end that isn't what it was.
func TestPackDamage(t *testing.T) {
	s := openStore(t)
	layer := string(testKey)
	a, b := []byte("an index"), content(1)[:3000]
	pack(t, s, oneKey, layer, map[string][]byte{"index.x": a, "rest.x": b})
	name := filepath.Join(s.imageDir(oneKey), packName)
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, at int, bad []byte) {
		if err := os.WriteFile(name, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		right := 0
		for section, want := range map[string][]byte{"index.x": a, "rest.x": b} {
			got, whole := packed(t, s, layer, section)
			switch {
			case !whole || len(got) == 0:
			case bytes.Equal(got[0], want):
				right++
			default:
				t.Errorf("%s %d: other bytes of %s", what, at, section)
			}
		}
		if err := s.CheckPack(oneKey); (err == nil) != (right == 2) || err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("%s %d: %d sections are right, and the check says %v", what, at, right, err)
		}
	}
	for at := range good {
		if at < len(packMagic) {
			continue // nothing depends on it
		}
		bad := bytes.Clone(good)
		bad[at] ^= 0x10
		try("changed at", at, bad)
	}
	for at := range good {
		try("cut at", at, good[:at])
	}
}

func TestDropLayer(t *testing.T) {
	s := openStore(t)
	layer := string(testKey)
	pack(t, s, oneKey, layer, map[string][]byte{indexName("in a pack"): []byte("a")})
	for _, name := range []string{"in a pack", "in none"} {
		if err := s.PutLayerIndex(t.Context(), layer, name, []byte("a")); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PutVerdict(layer, "v", ""); err != nil {
		t.Fatal(err)
	}
	sp, err := s.NewSpool()
	if err == nil {
		err = errors.Join(s.KeepSpool(sp, layer), sp.Close(), s.DropLayer(layer))
	}
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	files, err := os.ReadDir(s.layerDir(layer))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		left = append(left, f.Name())
	}
	if got, want := strings.Join(left, ", "), "index.in none, verdict.v"; got != want {
		t.Errorf("left are %s, not %s", got, want)
	}
	if err := errors.Join(s.DropLayer(string(oneKey)), s.PutLayerIndex(t.Context(), string(oneKey), "x", nil)); err != nil {
		t.Errorf("a layer that nothing is known of: %v", err)
	}
	if err := s.DropLayer("../x"); err == nil {
		t.Error("what is no digest was taken for one")
	}
}

// FuzzPack reads packs of any table and any frames. What is read to its end has as many bytes as the table says.
func FuzzPack(f *testing.F) {
	s := openStore(f)
	pack(f, s, oneKey, string(testKey), map[string][]byte{"index.x": []byte("an index"), "rest.x": content(2)})
	good, err := os.ReadFile(filepath.Join(s.imageDir(oneKey), packName))
	if err != nil {
		f.Fatal(err)
	}
	end := len(good) - packFooter
	table := end - int(binary.LittleEndian.Uint64(good[end+hashSize:]))
	f.Add(good[len(packMagic):table], good[table:end])
	f.Add(good[len(packMagic):table-5], good[table:end])
	f.Add([]byte{}, []byte{})
	f.Add([]byte{}, bytes.Repeat([]byte{0xff}, 100))
	f.Fuzz(func(t *testing.T, frames, table []byte) {
		sum := sha256.Sum256(table)
		b := append(append([]byte(packMagic), frames...), table...)
		b = append(binary.LittleEndian.AppendUint64(append(b, sum[:]...), uint64(len(table))), packMagic...)
		s := &Store{dir: t.TempDir(), boot: fuzzBoot}
		if err := os.MkdirAll(s.imageDir(oneKey), 0o700); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(s.imageDir(oneKey), packName)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		rows, err := readTable(file)
		if err != nil {
			if s.Packed(oneKey) || !errors.Is(s.CheckPack(oneKey), ErrDamaged) {
				t.Error("a pack without a table can be read")
			}
			return
		}
		at := int64(len(packMagic))
		for _, row := range rows {
			if row.off != at || row.n < 0 || row.n > int64(len(frames)) || row.length < 0 || !isHex(row.layer) {
				t.Fatalf("a section of %d bytes at %d", row.n, row.off)
			}
			at += row.n
		}
		for _, row := range rows[:min(len(rows), 4)] {
			if row.length <= 1<<20 {
				packed(t, s, row.layer, row.name)
			}
		}
	})
}
