package tree_test

import (
	"fmt"

	"github.com/pexfs/pex/lazy/tree"
	"github.com/pexfs/pex/lazy/tree/treetest"
)

func ExampleBuilder() {
	b := tree.NewBuilder(tree.Options{})
	b.AddLayer(seq([]tree.Entry{{Name: "etc/", Type: tree.Dir, Mode: 0o755}, {Name: "etc/old", Type: tree.Regular}}))
	b.AddLayer(seq([]tree.Entry{{Name: "etc/.wh.old", Type: tree.Regular}, {Name: "etc/new", Type: tree.Symlink, Linkname: "x", Mode: 0o777}}))
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
