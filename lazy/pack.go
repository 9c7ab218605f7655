package lazy

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/leaf"
	"github.com/pexfs/pex/lazy/store"
)

// Beside an image lies a pack: the indexes of its layers, and the rest of each streamed layer, which are contents that no image showed
// when it was made. Another image on the same layers is made of these and of what the image itself holds. A rest is:
//
//	number of contents; for each its place in the layer's index, from that of the one before (variable-length integers)
//	the contents, one behind the other
const restPrefix = "rest."

// keepHidden bounds what is kept of a streamed layer for the next image on the same base although no image shows it: up to
// 1/keepHidden of the layer's contents. Where more is hidden, the layer would be streamed again.
const keepHidden = 2

// pack writes the pack of an image whose layers are in use.
func (c *Cache) pack(info store.Info) error {
	w, err := c.st.NewPack(context.Background())
	if err != nil {
		return err
	}
	written := make(map[string]bool)
	for _, l := range info.Layers {
		hexDigest, name, err := indexOf(l)
		if err == nil && !written[hexDigest] {
			written[hexDigest] = true
			err = c.packLayer(w, hexDigest, name, !l.TOC)
		}
		if err != nil {
			return errors.Join(err, w.Discard())
		}
	}
	unlock, err := c.keys.Lock(context.Background(), info.Key) // else it comes into the midst of a removal
	if err != nil {
		return errors.Join(err, w.Discard())
	}
	defer unlock()
	return w.Keep(info.Key)
}

func (c *Cache) packLayer(w *store.PackWriter, hexDigest, name string, streamed bool) error {
	b, err := c.st.LayerIndex(hexDigest, name)
	if err != nil {
		return err
	}
	if err := w.Index(hexDigest, name, b); err != nil || !streamed {
		return err
	}
	ix := new(layer.Packed)
	if err := ix.UnmarshalBinary(b); err != nil {
		return err
	}
	sp, err := c.st.LayerSpool(hexDigest)
	if errors.Is(err, store.ErrNotCached) {
		return nil // the opening needed none: its contents are elsewhere
	}
	if err != nil {
		return err
	}
	defer sp.Close()
	rest, err := c.rest(hexDigest, name, ix, sp)
	if err != nil || len(rest) == 0 {
		return err
	}
	return w.Section(hexDigest, restPrefix+name, func(w io.Writer) error {
		head := binary.AppendUvarint(nil, uint64(len(rest)))
		last := 0
		for _, i := range rest {
			head = binary.AppendUvarint(head, uint64(i-last))
			last = i
		}
		if _, err := w.Write(head); err != nil {
			return err
		}
		buf := make([]byte, 256<<10)
		for _, i := range rest {
			ct := ix.Contents[i]
			if _, err := io.CopyBuffer(onlyWriter{w}, io.NewSectionReader(sp.Data, ct.SpoolOff, ct.Size), buf); err != nil {
				return err
			}
		}
		return nil
	})
}

type onlyWriter struct{ io.Writer }

// rest lists the contents of a layer that are in its spool and in no image or pack, unless they are too much.
func (c *Cache) rest(hexDigest, name string, ix *layer.Packed, sp *store.Spool) ([]int, error) {
	want := make(map[layer.Key]bool, len(ix.Contents))
	for _, ct := range ix.Contents {
		want[ct.Key] = true
	}
	err := c.holders(context.Background(), want, "", func(k layer.Key, _ *store.Image, _ extent) bool { delete(want, k); return false })
	if err != nil {
		return nil, err
	}
	packed := make(map[int]bool)
	err = c.st.EachPacked(hexDigest, restPrefix+name, func(r io.Reader, _ int64) (more bool) {
		if places, err := readPlaces(bufio.NewReader(r), len(ix.Contents)); err == nil {
			for _, i := range places {
				packed[i] = true
			}
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	var rest []int
	var total, hidden int64
	for i, ct := range ix.Contents {
		total += ct.Size
		if !want[ct.Key] {
			continue
		}
		hidden += ct.Size
		if _, ok := sp.LeavesOf(ct.SpoolOff, ct.Size); ok && !packed[i] {
			rest = append(rest, i)
			delete(want, ct.Key) // once
		}
	}
	if hidden > total/keepHidden {
		return nil, nil
	}
	return rest, nil
}

var errRest = errors.New("the rest of a layer has other bytes on disk")

// readPlaces reads the places of the contents of a rest, ascending, below n.
func readPlaces(r *bufio.Reader, n int) ([]int, error) {
	count, err := binary.ReadUvarint(r)
	if err != nil || count > uint64(n) {
		return nil, errRest
	}
	places := make([]int, count)
	at := uint64(0)
	for i := range places {
		d, err := binary.ReadUvarint(r)
		if err != nil || d >= uint64(n)-at || i > 0 && d == 0 {
			return nil, errRest
		}
		at += d
		places[i] = int(at)
	}
	return places, nil
}

// copyRests copies from packs those contents to their places in an image that a rest of their layer has, and returns the others.
func (c *Cache) copyRests(f *store.Image, extents []erofs.Extent, sources []source, layers []*layer.Packed) (left []erofs.Extent, err error) {
	byLayer := make(map[int32]map[layer.Key]int64) // places in the image
	for _, e := range extents {
		ly := e.Content.Layer
		if byLayer[ly] == nil {
			byLayer[ly] = make(map[layer.Key]int64)
		}
		byLayer[ly][layers[ly].Contents[e.Content.Index].Key] = e.Off
	}
	for ly, want := range byLayer {
		s := sources[ly]
		var failed error
		err := c.st.EachPacked(s.d.Digest.Hex, restPrefix+s.tarName(), func(r io.Reader, _ int64) (more bool) {
			failed = copyRest(f, bufio.NewReaderSize(r, 64<<10), want, layers[ly].Contents)
			return failed == nil && len(want) > 0
		})
		if err := errors.Join(err, failed); err != nil {
			return nil, err
		}
	}
	for _, e := range extents {
		ly := e.Content.Layer
		if _, missing := byLayer[ly][layers[ly].Contents[e.Content.Index].Key]; missing {
			left = append(left, e)
		}
	}
	return left, nil
}

// copyRest copies what a rest has of the wanted contents, and takes them from want. Its errors are of the image: what is wrong with the
// rest leaves contents wanted.
func copyRest(f *store.Image, r *bufio.Reader, want map[layer.Key]int64, contents []layer.Content) error {
	places, err := readPlaces(r, len(contents))
	if err != nil {
		return nil
	}
	for _, i := range places {
		ct := contents[i]
		off, ok := want[ct.Key]
		switch {
		case len(want) == 0:
			return nil
		case !ok:
			if _, err := io.CopyN(io.Discard, r, ct.Size); err != nil {
				return nil
			}
			continue
		}
		leaves, ok, err := copyContent(f, off, r, ct.Size)
		if err != nil || !ok {
			return err
		}
		if layer.BlocksKey(ct.Size, leaves) == ct.Key {
			if err := f.Adopt(off, leaves); err != nil {
				return err
			}
			delete(want, ct.Key)
		}
	}
	return nil
}

// copyContent writes size bytes of r and gives the leaves of their blocks, ok if r had them.
func copyContent(f *store.Image, off int64, r io.Reader, size int64) (leaves []byte, ok bool, err error) {
	buf := make([]byte, min(1<<20, blocksEnd(0, size)))
	for at := int64(0); at < size; at += int64(len(buf)) {
		n := min(int64(len(buf)), size-at)
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			return nil, false, nil
		}
		p := buf[:blocksEnd(0, n)]
		clear(p[n:])
		if err := f.PutPart(off+at, p); err != nil {
			return nil, false, fmt.Errorf("copying the rest of a layer: %w", err)
		}
		sums := make([]byte, len(p)/leaf.Block*leaf.Size)
		leaf.Sums(sums, p)
		leaves = append(leaves, sums...)
	}
	return leaves, true, nil
}
