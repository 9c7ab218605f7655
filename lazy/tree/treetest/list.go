package treetest

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/pexfs/pex/lazy/tree"
)

// maxListed is the size up to which a content is part of a listing.
const maxListed = 1 << 20

// List is a tree as text, in the form that the package's comment describes. content reads what the tree's contents refer to.
func List(t *tree.Tree, content func(tree.Content) []byte) string {
	var b strings.Builder
	first := make(map[tree.Ino]string)
	type item struct {
		path string
		ino  tree.Ino
	}
	for todo := []item{{"/", 0}}; len(todo) > 0; {
		it := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if old, ok := first[it.ino]; ok {
			fmt.Fprintf(&b, "%s = %s\n", quote(it.path), quote(old))
			continue
		}
		first[it.ino] = it.path
		b.WriteString(quote(it.path))
		describe(&b, t, it.ino, content)
		b.WriteByte('\n')
		at := len(todo)
		for d := range t.Children(it.ino) {
			todo = append(todo, item{strings.TrimSuffix(it.path, "/") + "/" + d.Name, d.Ino})
		}
		for i, j := at, len(todo)-1; i < j; i, j = i+1, j-1 {
			todo[i], todo[j] = todo[j], todo[i]
		}
	}
	return b.String()
}

// describe writes what an inode is, with a space before each field.
func describe(b *strings.Builder, t *tree.Tree, ino tree.Ino, content func(tree.Content) []byte) {
	a := t.Stat(ino)
	fmt.Fprintf(b, " %s", [...]string{
		tree.Dir: "dir", tree.Regular: "file", tree.Symlink: "symlink", tree.Char: "char", tree.Block: "block", tree.Fifo: "fifo",
	}[a.Type])
	if a.Type == tree.Symlink {
		fmt.Fprintf(b, " %s", quote(a.Target))
		if a.Mode != 0o777 {
			fmt.Fprintf(b, " mode=%04o", a.Mode)
		}
	} else {
		fmt.Fprintf(b, " %04o", a.Mode)
	}
	switch {
	case a.Type == tree.Char || a.Type == tree.Block:
		fmt.Fprintf(b, " %d:%d", a.Major, a.Minor)
	case a.Type == tree.Regular && a.Size > maxListed:
		fmt.Fprintf(b, " size=%d", a.Size)
	case a.Type == tree.Regular && a.Size > 0:
		data := content(a.Content)
		if text := bytes.TrimRight(data, "\x00"); len(text) > 0 {
			fmt.Fprintf(b, " %s", quote(string(text)))
		}
		if int64(len(data)) != a.Size || data[len(data)-1] == 0 {
			fmt.Fprintf(b, " size=%d", a.Size)
		}
	}
	if a.UID != 0 {
		fmt.Fprintf(b, " uid=%d", a.UID)
	}
	if a.GID != 0 {
		fmt.Fprintf(b, " gid=%d", a.GID)
	}
	switch {
	case a.Mtime.Nsec != 0:
		fmt.Fprintf(b, " mtime=%d.%09d", a.Mtime.Sec, a.Mtime.Nsec)
	case a.Mtime.Sec != 0:
		fmt.Fprintf(b, " mtime=%d", a.Mtime.Sec)
	}
	if a.Type != tree.Dir && a.Nlink != 1 {
		fmt.Fprintf(b, " nlink=%d", a.Nlink)
	}
	for k, v := range t.Xattrs(ino) {
		fmt.Fprintf(b, " xattr=%s:%s", k, quote(string(v)))
	}
}
