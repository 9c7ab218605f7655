package treetest

import (
	"archive/tar"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/pexfs/pex/lazy/tree"
)

// maxTar is the size of a content up to which a case is one to make a tar of.
const maxTar = 64 << 20

// InTar tells whether tars can have the case's layers: no name with a zero byte, no attribute twice, no unknown type, no negative
// size, and no content that takes long to read.
func (c *Case) InTar() bool {
	for _, layer := range c.Layers {
		for _, e := range layer {
			seen := make(map[string]bool)
			for _, x := range e.Xattrs {
				if seen[x.Name] {
					return false
				}
				seen[x.Name] = true
			}
			if strings.ContainsRune(e.Name+e.Linkname, 0) || e.Type > tree.Fifo || e.Size < 0 || e.Size > maxTar {
				return false
			}
		}
	}
	return true
}

// WriteTar writes a layer of a case as a tar with PAX headers, names as they are.
func (c *Case) WriteTar(w io.Writer, layer int) error {
	typeflags := [...]byte{
		tree.Dir: tar.TypeDir, tree.Regular: tar.TypeReg, tree.Symlink: tar.TypeSymlink, tree.HardLink: tar.TypeLink,
		tree.Char: tar.TypeChar, tree.Block: tar.TypeBlock, tree.Fifo: tar.TypeFifo,
	}
	tw := tar.NewWriter(w)
	for _, e := range c.Layers[layer] {
		h := &tar.Header{
			Typeflag: typeflags[e.Type], Name: e.Name, Linkname: e.Linkname, Mode: int64(e.Mode), Uid: int(e.UID), Gid: int(e.GID),
			Size: e.Size, ModTime: time.Unix(e.Mtime.Sec, int64(e.Mtime.Nsec)), Devmajor: int64(e.Major), Devminor: int64(e.Minor),
			Format: tar.FormatPAX,
		}
		for _, x := range e.Xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = make(map[string]string)
			}
			h.PAXRecords["SCHILY.xattr."+x.Name] = string(x.Value)
		}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("writing entry %.200q: %w", e.Name, err)
		}
		if e.Size > 0 {
			if _, err := io.Copy(tw, c.Contents[layer][e.Content].Reader()); err != nil {
				return fmt.Errorf("writing entry %.200q: %w", e.Name, err)
			}
		}
	}
	return tw.Close()
}
