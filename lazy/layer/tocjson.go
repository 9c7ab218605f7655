package layer

import (
	"bytes"
	"encoding/base64"
	"io"
	"slices"
	"strings"

	"github.com/pexfs/pex/lazy/tree"
)

// tocEntry is an entry of a TOC's JSON: the fields of the estargz package, and those that containers/image adds. The
// strings are parts of what the scanner has in memory where they can be.
type tocEntry struct {
	name, link, typ          []byte
	size, mode, uid, gid     int64
	modTime                  []byte
	devMajor, devMinor       int64
	xattrs                   []tree.Xattr
	xattrBytes               int    // of xattrs, each with xattrCost more; beyond maxXattrs xattrs isn't all
	digest                   []byte // of the whole file
	offset, endOffset, inner int64
	chunkOffset, chunkSize   int64
	chunkDigest, chunkType   []byte
}

// scanTOC reads a TOC's JSON (RFC 8259) in one pass and calls f for every entry, which is valid only during the call. Keys are matched
// exactly; of a repeated one the last counts; unknown ones are skipped. Errors of f and of r end the scan and are returned as they are.
func scanTOC(r io.Reader, f func(*tocEntry) error) (version int64, err error) {
	s := newScanner(r)
	var e tocEntry
	var ferr error
	field := func(key []byte) { s.field(&e, key) }
	entry := func() {
		s.letGo()
		e = tocEntry{xattrs: nil}
		s.objectOrNull(field)
		if s.err == nil && ferr == nil {
			if ferr = f(&e); ferr != nil {
				s.fail("") // nothing more is read
			}
		}
	}
	seen := false
	s.object(func(key []byte) {
		switch string(key) {
		case "version":
			s.int(&version)
		case "entries":
			if seen {
				s.fail("a second list of entries")
			}
			seen = true
			if !s.null() {
				s.array(entry)
			}
		default:
			s.skip()
		}
	})
	if ferr != nil {
		return version, ferr
	}
	if s.space(); s.err == nil && s.more() {
		s.fail("bytes behind the end")
	}
	return version, s.err
}

// field reads the value of one key of an entry.
func (s *scanner) field(e *tocEntry, key []byte) {
	switch string(key) {
	case "name":
		s.string(&e.name)
	case "type":
		s.string(&e.typ)
	case "size":
		s.int(&e.size)
	case "modtime":
		s.string(&e.modTime)
	case "linkName":
		s.string(&e.link)
	case "mode":
		s.int(&e.mode)
	case "uid":
		s.int(&e.uid)
	case "gid":
		s.int(&e.gid)
	case "offset":
		s.int(&e.offset)
	case "endOffset":
		s.int(&e.endOffset)
	case "innerOffset":
		s.int(&e.inner)
	case "devMajor":
		s.int(&e.devMajor)
	case "devMinor":
		s.int(&e.devMinor)
	case "xattrs":
		s.xattrs(e)
	case "digest":
		s.string(&e.digest)
	case "chunkOffset":
		s.int(&e.chunkOffset)
	case "chunkSize":
		s.int(&e.chunkSize)
	case "chunkDigest":
		s.string(&e.chunkDigest)
	case "chunkType":
		s.string(&e.chunkType)
	default:
		s.skip()
	}
}

// xattrs reads an object of values in base64, and sorts it by name.
func (s *scanner) xattrs(e *tocEntry) {
	e.xattrs, e.xattrBytes = nil, 0
	s.objectOrNull(func(key []byte) {
		var text []byte
		if !s.null() {
			text = s.text()
		}
		size := base64.RawStdEncoding.DecodedLen(len(bytes.TrimRight(text, "=")))
		if e.xattrBytes += len(key) + size + xattrCost; e.xattrBytes > maxXattrs {
			return // no memory for what will be refused
		}
		x := tree.Xattr{Name: string(key)}
		if text != nil {
			value := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
			n, err := base64.StdEncoding.Decode(value, text)
			if err != nil {
				s.fail("an attribute that isn't base64")
				return
			}
			x.Value = value[:n]
		}
		e.xattrs = append(e.xattrs, x)
	})
	// of a repeated name the last stays
	slices.Reverse(e.xattrs)
	slices.SortStableFunc(e.xattrs, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	e.xattrs = slices.CompactFunc(e.xattrs, func(a, b tree.Xattr) bool { return a.Name == b.Name })
}
