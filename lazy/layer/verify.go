package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/tree"
)

// ErrTOCDiffers is wrapped where a layer's TOC says something else than its tar.
var ErrTOCDiffers = errors.New("the table of contents differs from the tar")

// Verify reads a whole layer from r, as Stream does but writing nothing, and compares it with the index that ReadTOC made of
// its TOC. The error wraps ErrTOCDiffers where the layer is what d and diffID promise but the TOC says something else; it names
// the first difference. Any other error says that the layer couldn't be read, or isn't what it should be. An end of r ends Verify.
//
// Both must have the same entries in the same order, with the same names and targets of hard links (cleaned), types, modes,
// owners, sizes, targets of symlinks, device numbers, times and attributes; and the tar's bytes must have the digest of every chunk.
// That the chunks are where the TOC says is not looked at: who reads them verifies them. Entries are counted from 0, eStargz's own
// files left out. What the writers of TOCs are known to lose is not a difference:
//   - the estargz package rounds times to seconds, has none for times within the first second of 1970 and the year 1, and leaves out
//     attributes that are only in libarchive's records (LIBARCHIVE.xattr);
//   - containers/image leaves the latter out too.
func Verify(r io.Reader, d v1.Descriptor, diffID v1.Hash, toc *Index, lim Limits) error {
	if toc.Source != FromTOC {
		return errors.New("comparing the table of contents with the tar: the index was made from a tar")
	}
	v := &verifier{toc: toc, sum: sha256.New(), buf: make([]byte, 64<<10)}
	if err := readLayer(context.Background(), r, d, diffID, v, lim); err != nil {
		return err
	}
	return v.differs
}

// verifier is a sink that compares what it gets with a TOC's index.
type verifier struct {
	toc     *Index
	entries int
	differs error // the first difference: it counts only if the layer's digests hold
	sum     hash.Hash
	buf     []byte
}

func (v *verifier) entry(e *tree.Entry, h *tar.Header, body io.Reader) error {
	if v.differs != nil {
		return nil
	}
	n := v.entries
	v.entries++
	if n >= len(v.toc.Entries) {
		v.differ(n, e.Name, "is in the tar, not in the table of contents")
		return nil
	}
	t := &v.toc.Entries[n]
	if what := compare(e, t, h.PAXRecords); what != "" {
		v.differ(n, e.Name, what)
		return nil
	}
	if e.Type != tree.Regular || e.Size == 0 {
		return nil
	}
	what, err := v.content(t, body)
	if what != "" {
		v.differ(n, e.Name, what)
	}
	return err
}

func (v *verifier) close() error {
	if n := v.entries; v.differs == nil && n < len(v.toc.Entries) {
		v.differ(n, v.toc.Entries[n].Name, "is in the table of contents, not in the tar")
	}
	return nil
}

func (v *verifier) differ(n int, name, what string) {
	v.differs = fmt.Errorf("%w: entry %d %.200q: %s", ErrTOCDiffers, n, name, what)
}

// compare says how an entry of the tar and one of the TOC differ, or "". records are the tar's.
func compare(e, t *tree.Entry, records map[string]string) string {
	type field struct {
		name      string
		tar, toc  any
		different bool
	}
	for _, f := range [...]field{
		{"name", quoted(e.Name), quoted(t.Name), cleaned(e.Name) != cleaned(t.Name)},
		{"type", typeName(e.Type), typeName(t.Type), e.Type != t.Type},
		{"mode", octal(e.Mode), octal(t.Mode), e.Mode != t.Mode},
		{"uid", e.UID, t.UID, e.UID != t.UID},
		{"gid", e.GID, t.GID, e.GID != t.GID},
		{"size", e.Size, t.Size, e.Size != t.Size},
		{"target", quoted(e.Linkname), quoted(t.Linkname), !sameTarget(e, t)},
		{"device", device{e.Major, e.Minor}, device{t.Major, t.Minor}, e.Major != t.Major || e.Minor != t.Minor},
		{"time", timestamp(e.Mtime), timestamp(t.Mtime), !sameTime(e.Mtime, t.Mtime)},
	} {
		if f.different {
			return fmt.Sprintf("%s %v in the tar, %v in the table of contents", f.name, f.tar, f.toc)
		}
	}
	return compareXattrs(e.Xattrs, t.Xattrs, records)
}

// These types say how a value is to be shown.
type (
	quoted    string
	octal     uint32
	device    struct{ major, minor uint32 }
	timestamp tree.Time
)

func (s quoted) String() string    { return fmt.Sprintf("%.200q", string(s)) }
func (m octal) String() string     { return fmt.Sprintf("%#04o", uint32(m)) }
func (d device) String() string    { return fmt.Sprintf("%d:%d", d.major, d.minor) }
func (t timestamp) String() string { return fmt.Sprintf("%d.%09d", t.Sec, t.Nsec) }

// cleaned is a name as the merged tree takes it.
func cleaned(name string) string { return path.Clean("/" + name) }

func sameTarget(e, t *tree.Entry) bool {
	return e.Linkname == t.Linkname || e.Type == tree.HardLink && cleaned(e.Linkname) == cleaned(t.Linkname)
}

// sameTime allows for what writers of TOCs do to a time.
func sameTime(e, t tree.Time) bool {
	if e == t {
		return true
	}
	if t.Nsec != 0 {
		return false
	}
	at := time.Unix(e.Sec, int64(e.Nsec))
	unknown := e.Sec == 0 || at.IsZero()
	return t.Sec == at.Round(time.Second).Unix() || t.Sec == 0 && unknown
}

func compareXattrs(tar, toc []tree.Xattr, records map[string]string) string {
	find := func(all []tree.Xattr, name string) (tree.Xattr, bool) {
		i, ok := slices.BinarySearchFunc(all, name, func(x tree.Xattr, name string) int { return strings.Compare(x.Name, name) })
		if !ok {
			return tree.Xattr{}, false
		}
		return all[i], true
	}
	for _, x := range tar {
		y, ok := find(toc, x.Name)
		_, star := records[starXattr+x.Name]
		switch {
		case !ok && star:
			return fmt.Sprintf("attribute %.200q is in the tar, not in the table of contents", x.Name)
		case ok && !bytes.Equal(x.Value, y.Value):
			return fmt.Sprintf("attribute %.200q %.80q in the tar, %.80q in the table of contents", x.Name, x.Value, y.Value)
		}
	}
	for _, y := range toc {
		if _, ok := find(tar, y.Name); !ok {
			return fmt.Sprintf("attribute %.200q is in the table of contents, not in the tar", y.Name)
		}
	}
	return ""
}

// content says how the content of a file of the tar differs from the chunks that a TOC's entry says it has, or "".
func (v *verifier) content(t *tree.Entry, body io.Reader) (string, error) {
	c := v.toc.Contents[t.Content]
	if c.Size != t.Size {
		return fmt.Sprintf("%d bytes in the tar, chunks of %d bytes in the table of contents", t.Size, c.Size), nil
	}
	for i, ch := range v.toc.Chunks[c.FirstChunk:][:c.Chunks] {
		v.sum.Reset()
		n, err := io.CopyBuffer(v.sum, io.LimitReader(body, ch.Size), v.buf)
		if err != nil {
			return "", err
		}
		if n != ch.Size {
			return "", io.ErrUnexpectedEOF
		}
		if got := [32]byte(v.sum.Sum(nil)); got != ch.Digest {
			return fmt.Sprintf("chunk %d, %d bytes from %d on, sha256:%x in the tar, sha256:%x in the table of contents", i, ch.Size, ch.Off, got, ch.Digest), nil
		}
	}
	return "", nil
}
