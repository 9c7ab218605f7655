package tree_test

import (
	"testing"

	"github.com/pexfs/pex/lazy/tree"
)

func FuzzBuilder(f *testing.F) {
	f.Add([]byte("a\x00b\x01a/.wh.b\x02"))
	f.Add([]byte("\x02a/b\x00.wh..wh..opq\x01../x\x03a\x04"))
	f.Add([]byte("a.wh.x\x02a/b\x01\x1fa\x03.wh.a\x01a/a\x01"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var layers [][]tree.Entry
		layer := []tree.Entry{}
		name := []byte{}
		for _, c := range in {
			if c >= 0x20 {
				name = append(name, c)
				continue
			}
			if c == 0x1f {
				layers = append(layers, layer)
				layer = nil
				continue
			}
			e := tree.Entry{Name: string(name), Type: tree.Type(c % 8), Linkname: "a", Mode: uint32(c), Size: int64(c)}
			if e.Type == tree.Symlink && len(name) > 0 {
				e.Linkname = "../" + string(name[len(name)/2:])
			}
			layer = append(layer, e)
			name = nil
		}
		tr, err := build(tree.Options{MaxInodes: 10000}, append(layers, layer)...)
		if err != nil {
			return
		}
		checkTree(t, tr)
		two, err := tree.Pack([]tree.Part{{Prefix: "a/b", Tree: tr}, {Prefix: "c", Tree: tr}})
		if err != nil {
			t.Fatal(err)
		}
		checkTree(t, two)
	})
}
