package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/layout"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/tree"
)

// merged is the tree that the project's packages make of an OCI layout's image, before there is an EROFS image of it. It is for
// small images: contents are kept in memory.
func merged(t *testing.T, name string) (files, error) {
	t.Helper()
	ctx := context.Background()
	r, err := ref.Parse(name)
	if err != nil {
		return nil, err
	}
	repo, err := layout.Open(r)
	if err != nil {
		return nil, err
	}
	var m v1.Manifest
	var cfg v1.ConfigFile
	d, err := repo.Resolve(ctx)
	if err == nil {
		err = readJSON(ctx, repo, d, &m)
	}
	if err == nil {
		err = readJSON(ctx, repo, m.Config, &cfg)
	}
	if err != nil {
		return nil, err
	}
	b := tree.NewBuilder(tree.Options{})
	sums := make([][]string, len(m.Layers))
	for i, d := range m.Layers {
		ix, contents, err := readLayer(ctx, repo, d, cfg.RootFS.DiffIDs[i])
		if err != nil {
			return nil, err
		}
		for _, c := range contents {
			sums[i] = append(sums[i], fmt.Sprintf("%x", sha256.Sum256(c)))
		}
		if err := b.AddLayer(func(yield func(tree.Entry, error) bool) {
			for _, e := range ix.Entries {
				if !yield(e, nil) {
					return
				}
			}
		}); err != nil {
			return nil, err
		}
	}
	tr, err := b.Build()
	if err != nil {
		return nil, err
	}
	return listMerged(tr, sums), nil
}

func readJSON(ctx context.Context, repo *layout.Repo, d v1.Descriptor, v any) error {
	b, err := repo.Manifest(ctx, d)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// readLayer reads a layer as an opening does, by its table of contents or else whole, and its contents by their numbers.
func readLayer(ctx context.Context, repo *layout.Repo, d v1.Descriptor, diffID v1.Hash) (*layer.Index, [][]byte, error) {
	src := repo.Blob(d)
	ix, err := layer.ReadTOC(ctx, src, d, layer.Limits{})
	toc := err == nil
	if err != nil && !errors.Is(err, layer.ErrNoTOC) {
		return nil, nil, err
	}
	r, err := src.Fetch(ctx, 0, d.Size)
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	if !toc {
		var spool, leaves memory
		if ix, err = layer.Stream(ctx, r, d, diffID, &spool, &leaves, layer.Limits{}); err != nil {
			return nil, nil, err
		}
		contents := make([][]byte, len(ix.Contents))
		for i, c := range ix.Contents {
			contents[i] = make([]byte, c.Size)
			copy(contents[i], spool.b[min(c.SpoolOff, int64(len(spool.b))):])
		}
		return ix, contents, nil
	}
	blob, err := io.ReadAll(r)
	if err != nil {
		return nil, nil, err
	}
	contents := make([][]byte, len(ix.Contents))
	for i, c := range ix.Contents {
		chunks := slices.Clone(ix.Chunks[c.FirstChunk : c.FirstChunk+c.Chunks])
		for _, ch := range chunks {
			// one at a time: chunks of one content needn't stand in the blob in their order
			if err := layer.ReadChunks(ctx, ix.Format, bytes.NewReader(blob), 0, []layer.Chunk{ch}, func(_ int, p []byte) error {
				contents[i] = append(contents[i], p...)
				return nil
			}); err != nil {
				return nil, nil, err
			}
		}
	}
	return ix, contents, nil
}

// memory is a file in memory.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if end := off + int64(len(p)); end > int64(len(m.b)) {
		m.b = append(m.b, make([]byte, end-int64(len(m.b)))...)
	}
	return copy(m.b[off:], p), nil
}

func listMerged(tr *tree.Tree, sums [][]string) files {
	out := files{}
	names := map[tree.Ino][]string{}
	type item struct {
		path string
		ino  tree.Ino
	}
	for todo := []item{{"", 0}}; len(todo) > 0; todo = todo[1:] {
		at := todo[0]
		out[at.path] = mergedFile(tr, at.ino, sums)
		names[at.ino] = append(names[at.ino], at.path)
		if tr.Stat(at.ino).Type == tree.Dir {
			for d := range tr.Children(at.ino) {
				todo = append(todo, item{at.path + "/" + d.Name, d.Ino})
			}
		}
	}
	for _, all := range names {
		if len(all) > 1 {
			slices.Sort(all)
			for _, p := range all {
				f := out[p]
				f.Same = all[0]
				out[p] = f
			}
		}
	}
	return out
}

func mergedFile(tr *tree.Tree, ino tree.Ino, sums [][]string) file {
	a := tr.Stat(ino)
	f := file{Mode: a.Mode, UID: a.UID, GID: a.GID, Nlink: a.Nlink, Mtime: unix.Timespec{Sec: a.Mtime.Sec, Nsec: int64(a.Mtime.Nsec)}}
	switch a.Type {
	case tree.Dir:
		f.Mode |= unix.S_IFDIR
	case tree.Regular:
		f.Mode |= unix.S_IFREG
		f.Size = a.Size
		f.Sum = noneSum
		if a.Size > 0 {
			f.Sum = sums[a.Content.Layer][a.Content.Index]
		}
	case tree.Symlink:
		f.Mode |= unix.S_IFLNK
		f.Size, f.Target = a.Size, a.Target
	case tree.Char:
		f.Mode |= unix.S_IFCHR
		f.Rdev = unix.Mkdev(a.Major, a.Minor)
	case tree.Block:
		f.Mode |= unix.S_IFBLK
		f.Rdev = unix.Mkdev(a.Major, a.Minor)
	case tree.Fifo:
		f.Mode |= unix.S_IFIFO
	}
	x := map[string]string{}
	for name, v := range tr.Xattrs(ino) {
		x[name] = string(v)
	}
	f.Xattrs = showXattrs(x)
	return f
}
