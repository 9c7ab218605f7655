package layer

import (
	"archive/tar"
	"encoding/base64"
	"fmt"
	"io"
	"math"
	"net/url"
	"slices"
	"strings"

	"github.com/pexfs/pex/lazy/tree"
)

// readTar reads entries up to the end of the archive.
func (s *streamer) readTar() error {
	tr := tar.NewReader(s.tar)
	n, last := 0, "" // entries so far, and the name of the last one
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			if n > 0 {
				return fmt.Errorf("reading tar behind entry %d %.200q: %w", n-1, last, err)
			}
			return fmt.Errorf("reading tar: %w", err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader || added(h.Name) {
			continue
		}
		if err := s.entry(tr, h); err != nil {
			return fmt.Errorf("entry %d %.200q: %w", n, h.Name, err)
		}
		n, last = n+1, h.Name
	}
}

// entry passes on an entry that is within the limits.
func (s *streamer) entry(tr *tar.Reader, h *tar.Header) error {
	e, err := entryOf(h)
	if err != nil {
		return err
	}
	if err := s.sum.add(&e); err != nil {
		return err
	}
	return s.to.entry(&e, h, tr)
}

// indexer is a sink that makes an index of a layer and writes its contents to a spool.
type indexer struct {
	ix *Index
	w  *spoolWriter
}

func (x *indexer) entry(e *tree.Entry, _ *tar.Header, body io.Reader) error {
	if e.Type == tree.Regular && e.Size > 0 {
		n := len(x.w.contents)
		if n == math.MaxInt32 {
			return fmt.Errorf("the layer has more than %d files", math.MaxInt32)
		}
		if err := x.w.content(body, e.Size); err != nil {
			return err
		}
		e.Content = int32(n)
	}
	x.ix.Entries = append(x.ix.Entries, *e)
	return nil
}

func (x *indexer) close() error {
	err := x.w.close()
	x.ix.Contents = x.w.contents
	return err
}

func entryOf(h *tar.Header) (tree.Entry, error) {
	e := tree.Entry{
		Name: h.Name, Mode: uint32(h.Mode & 0o7777),
		Mtime: tree.Time{Sec: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond())},
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		e.Type, e.Size = tree.Regular, h.Size
	case tar.TypeDir:
		e.Type = tree.Dir
	case tar.TypeSymlink:
		e.Type = tree.Symlink
	case tar.TypeLink:
		e.Type = tree.HardLink
	case tar.TypeChar:
		e.Type = tree.Char
	case tar.TypeBlock:
		e.Type = tree.Block
	case tar.TypeFifo:
		e.Type = tree.Fifo
	default:
		return e, fmt.Errorf("unknown type %q", h.Typeflag)
	}
	if e.Type == tree.Char || e.Type == tree.Block {
		if h.Devmajor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor < 0 || h.Devminor > math.MaxUint32 {
			return e, fmt.Errorf("device %d:%d", h.Devmajor, h.Devminor)
		}
		e.Major, e.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	}
	if e.Type == tree.Symlink || e.Type == tree.HardLink {
		e.Linkname = h.Linkname // some tars have one left over from the entry before
	}
	if h.Uid < 0 || h.Uid > math.MaxUint32 || h.Gid < 0 || h.Gid > math.MaxUint32 {
		return e, fmt.Errorf("owner %d:%d", h.Uid, h.Gid)
	}
	e.UID, e.GID = uint32(h.Uid), uint32(h.Gid)
	var err error
	e.Xattrs, err = xattrsOf(h.PAXRecords)
	return e, err
}

// Prefixes of the PAX records that hold attributes.
const starXattr, libarchiveXattr = "SCHILY.xattr.", "LIBARCHIVE.xattr."

// xattrsOf collects attributes, sorted by name: star's records, and libarchive's (name URL-encoded, value in base64) where star's are
// missing.
func xattrsOf(records map[string]string) ([]tree.Xattr, error) {
	var all []tree.Xattr
	total := 0
	for k, v := range records {
		var x tree.Xattr
		if name, ok := strings.CutPrefix(k, starXattr); ok {
			x = tree.Xattr{Name: name, Value: []byte(v)}
		} else if name, ok := strings.CutPrefix(k, libarchiveXattr); ok {
			plain, err := url.PathUnescape(name)
			if err != nil {
				return nil, fmt.Errorf("attribute %.200q: %w", name, err)
			}
			if _, ok := records[starXattr+plain]; ok {
				continue
			}
			// libarchive leaves out the padding
			value, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(v, "= \n"))
			if err != nil {
				return nil, fmt.Errorf("attribute %.200q: %w", name, err)
			}
			x = tree.Xattr{Name: plain, Value: value}
		} else {
			continue
		}
		if total += len(x.Name) + len(x.Value) + xattrCost; total > maxXattrs {
			return nil, fmt.Errorf("attributes of more than %d bytes", maxXattrs)
		}
		all = append(all, x)
	}
	slices.SortFunc(all, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	// two of libarchive's names can mean the same
	return slices.CompactFunc(all, func(a, b tree.Xattr) bool { return a.Name == b.Name }), nil
}
