package tree_test

import (
	"fmt"

	"github.com/pexfs/pex/lazy/tree"
	"github.com/pexfs/pex/lazy/tree/treetest"
)

func ExampleBuilder() {
	b := tree.NewBuilder(tree.Options{})
	for _, layer := range [][]tree.Entry{
		{{Name: "etc/", Type: tree.Dir, Mode: 0o755}, {Name: "etc/old", Type: tree.Regular}},
		{{Name: "etc/.wh.old", Type: tree.Regular}, {Name: "etc/new", Type: tree.Symlink, Linkname: "x"}},
	} {
		if err := b.AddLayer(seq(layer)); err != nil {
			panic(err)
		}
	}
	t, err := b.Build()
	if err != nil {
		panic(err)
	}
	fmt.Print(treetest.List(t, nil))
	// Output:
	// / dir 0755
	// /etc dir 0755
	// /etc/new symlink x
}

func ExamplePack() {
	one, err := build(tree.Options{}, []tree.Entry{{Name: "a", Type: tree.Fifo, Mode: 0o600, UID: 5}})
	if err != nil {
		panic(err)
	}
	shifted, err := tree.Shift(one, 100000)
	if err != nil {
		panic(err)
	}
	t, err := tree.Pack([]tree.Part{{Prefix: "images/one", Tree: one}, {Prefix: "images/shifted", Tree: shifted}})
	if err != nil {
		panic(err)
	}
	fmt.Print(treetest.List(t, nil))
	// Output:
	// / dir 0755
	// /images dir 0755
	// /images/one dir 0755
	// /images/one/a fifo 0600 uid=5
	// /images/shifted dir 0755 uid=100000 gid=100000
	// /images/shifted/a fifo 0600 uid=100005 gid=100000
}

func ExampleTree_Ambiguous() {
	t, err := build(tree.Options{}, []tree.Entry{{Name: "../a", Type: tree.Fifo}, {Name: "a", Type: tree.Fifo}})
	if err != nil {
		panic(err)
	}
	for _, a := range t.Ambiguous() {
		fmt.Println(a)
	}
	// Output:
	// layer 0, entry 0 "../a": the name climbs above the root
	// layer 0, entry 1 "a": the layer gave this name before
}
