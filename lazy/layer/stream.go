package layer

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"net/url"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/tree"
)

// Stream reads a whole layer from r: gzip, zstd or plain tar, as its first bytes say. The contents of regular files go to spool, each
// from a multiple of 4,096 on and padded with zeros; the SHA-256 of spool's block j goes to leaves at 32j. The index is
// returned only if the blob has d's digest and size and its tar diffID; else spool and leaves hold nothing of worth.
// An error names the entry and its offset in the tar.
func Stream(ctx context.Context, r io.Reader, d v1.Descriptor, diffID v1.Hash, spool, leaves io.WriterAt, lim Limits) (*Index, error) {
	if lim.MaxSize == 0 {
		lim.MaxSize = defaultMaxSize
	}
	if lim.MaxEntries == 0 {
		lim.MaxEntries = defaultMaxEntries
	}
	if d.Digest.Algorithm != "sha256" || diffID.Algorithm != "sha256" {
		return nil, fmt.Errorf("digests %s and %s: only SHA-256 is supported", d.Digest, diffID)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	raw := &hashReader{r: r, h: sha256.New(), max: d.Size, progress: lim.Progress}
	in := newAhead(ctx, raw)
	defer in.stop()
	inflated, err := inflate(bufio.NewReaderSize(in, 1<<16))
	if err != nil {
		return nil, raw.reason(err)
	}
	defer inflated.Close()
	out := newAhead(ctx, inflated)
	defer out.stop() // before the decoder is closed and the raw reader stopped
	t := &hashReader{r: out, h: sha256.New(), max: lim.MaxSize}
	ix := &Index{Source: FromTar}
	w := &spoolWriter{data: spool, leaves: leaves, key: sha256.New()}
	err = readTar(t, ix, w, lim)
	if err == nil {
		_, err = io.Copy(io.Discard, t) // padding, and whatever follows the tar: the diffID covers it
	}
	if err == nil {
		err = w.flush()
	}
	if err != nil {
		if t.n > lim.MaxSize {
			err = fmt.Errorf("the layer inflates to more than %d bytes", lim.MaxSize)
		}
		return nil, fmt.Errorf("at offset %d of the tar: %w", t.n, raw.reason(err))
	}
	// what a decoder leaves unread after its last member
	if _, err := io.Copy(io.Discard, in); err != nil {
		return nil, raw.reason(err)
	}
	if raw.n != d.Size {
		return nil, fmt.Errorf("%w: blob %s has %d bytes, its descriptor says %d", blob.ErrDigestMismatch, d.Digest, raw.n, d.Size)
	}
	if got := hex.EncodeToString(raw.h.Sum(nil)); got != d.Digest.Hex {
		return nil, fmt.Errorf("%w: blob %s has digest sha256:%s", blob.ErrDigestMismatch, d.Digest, got)
	}
	if got := hex.EncodeToString(t.h.Sum(nil)); got != diffID.Hex {
		return nil, fmt.Errorf("%w: the tar of blob %s has diffID sha256:%s, the config says %s", blob.ErrDigestMismatch, d.Digest, got, diffID)
	}
	return ix, nil
}

// hashReader hashes and counts what is read through it, and refuses more than max bytes.
type hashReader struct {
	r        io.Reader
	h        hash.Hash
	n, max   int64
	err      error // the first error of r, but for the end
	progress func(int64)
}

func (h *hashReader) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.h.Write(p[:n])
	h.n += int64(n)
	if h.n > h.max {
		return 0, h.fail(fmt.Errorf("more than the %d bytes that were announced", h.max))
	}
	if n > 0 && h.progress != nil {
		h.progress(h.n)
	}
	if err != nil && err != io.EOF {
		return n, h.fail(err)
	}
	return n, err
}

func (h *hashReader) fail(err error) error {
	if h.err == nil {
		h.err = err
	}
	return err
}

// reason prefers the source's own error to what a decoder makes of it.
func (h *hashReader) reason(err error) error {
	if h.err != nil && !errors.Is(err, h.err) {
		return fmt.Errorf("%w (%w)", h.err, err)
	}
	return err
}

// inflate tells a stream's compression by its first bytes and undoes it.
func inflate(r *bufio.Reader) (io.ReadCloser, error) {
	m, err := r.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case len(m) >= 2 && m[0] == 0x1f && m[1] == 0x8b:
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, fmt.Errorf("reading gzip: %w", err)
		}
		return z, nil
	case len(m) == 4 && (binary.LittleEndian.Uint32(m) == 0xFD2FB528 || binary.LittleEndian.Uint32(m)&^0xf == 0x184D2A50):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("reading zstd: %w", err)
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}

// maxWindow is the most memory that a zstd frame may ask for: what `zstd --ultra --long=27` makes.
const maxWindow = 128 << 20

// readTar reads entries up to the end of the archive.
func readTar(r io.Reader, ix *Index, w *spoolWriter, lim Limits) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading tar after %d entries: %w", len(ix.Entries), err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader || ours(h.Name) {
			continue
		}
		if len(ix.Entries) >= lim.MaxEntries {
			return fmt.Errorf("more than %d entries", lim.MaxEntries)
		}
		e, err := entryOf(h)
		if err == nil && e.Type == tree.Regular && e.Size > 0 {
			if e.Size > lim.MaxSize || len(ix.Contents) == math.MaxInt32 {
				return fmt.Errorf("entry %.200q has %d bytes", h.Name, e.Size)
			}
			var c Content
			if c, err = w.content(tr, e.Size); err == nil {
				e.Content = int32(len(ix.Contents))
				ix.Contents = append(ix.Contents, c)
			}
		}
		if err != nil {
			return fmt.Errorf("entry %.200q: %w", h.Name, err)
		}
		ix.Entries = append(ix.Entries, e)
	}
}

func entryOf(h *tar.Header) (tree.Entry, error) {
	e := tree.Entry{
		Name: h.Name, Linkname: h.Linkname, Mode: uint32(h.Mode & 0o7777),
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
	case tar.TypeChar, tar.TypeBlock:
		e.Type = tree.Char
		if h.Typeflag == tar.TypeBlock {
			e.Type = tree.Block
		}
		if h.Devmajor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor < 0 || h.Devminor > math.MaxUint32 {
			return e, fmt.Errorf("device %d:%d", h.Devmajor, h.Devminor)
		}
		e.Major, e.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	case tar.TypeFifo:
		e.Type = tree.Fifo
	default:
		return e, fmt.Errorf("unknown type %q", h.Typeflag)
	}
	if h.Uid < 0 || h.Uid > math.MaxUint32 || h.Gid < 0 || h.Gid > math.MaxUint32 {
		return e, fmt.Errorf("owner %d:%d", h.Uid, h.Gid)
	}
	e.UID, e.GID = uint32(h.Uid), uint32(h.Gid)
	var err error
	e.Xattrs, err = xattrsOf(h.PAXRecords)
	return e, err
}

// xattrsOf collects attributes: star's records, and libarchive's (name URL-encoded, value in base64) where star's are missing.
func xattrsOf(records map[string]string) ([]tree.Xattr, error) {
	var all []tree.Xattr
	total := 0
	for k, v := range records {
		if name, ok := strings.CutPrefix(k, "LIBARCHIVE.xattr."); ok {
			plain, err := url.PathUnescape(name)
			if err != nil {
				return nil, fmt.Errorf("attribute %.200q: %w", name, err)
			}
			if _, ok := records["SCHILY.xattr."+plain]; ok {
				continue
			}
			b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(v))
			if err != nil {
				if b, err = base64.RawStdEncoding.DecodeString(strings.TrimSpace(v)); err != nil {
					return nil, fmt.Errorf("attribute %.200q: %w", name, err)
				}
			}
			all = append(all, tree.Xattr{Name: plain, Value: b})
			total += len(plain) + len(b)
		} else if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			all = append(all, tree.Xattr{Name: name, Value: []byte(v)})
			total += len(name) + len(v)
		}
	}
	if total > maxXattrs {
		return nil, fmt.Errorf("attributes of %d bytes", total)
	}
	return all, nil
}

const (
	blockSize = 4096
	hashSize  = sha256.Size
	spoolBuf  = 1 << 20
)

// spoolWriter writes contents behind each other, from block to block, in big pieces.
type spoolWriter struct {
	data, leaves io.WriterAt
	buf          []byte // whole blocks but for the last
	sums         []byte // of the whole blocks in buf
	hashed       int    // bytes of buf that have their sum
	off          int64  // of buf in the spool
	key          hash.Hash
}

// content copies n bytes from r.
func (w *spoolWriter) content(r io.Reader, n int64) (Content, error) {
	c := Content{Size: n, SpoolOff: w.off + int64(len(w.buf))}
	w.key.Reset()
	io.WriteString(w.key, "pex blocks 1")
	w.key.Write(binary.LittleEndian.AppendUint64(nil, uint64(n)))
	if w.buf == nil {
		w.buf = make([]byte, 0, spoolBuf)
	}
	for n > 0 {
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return c, err
			}
		}
		room := w.buf[len(w.buf):min(int64(cap(w.buf)), int64(len(w.buf))+n)]
		k, err := io.ReadFull(r, room)
		w.buf = w.buf[:len(w.buf)+k]
		n -= int64(k)
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return c, err
		}
		if n == 0 {
			if odd := len(w.buf) % blockSize; odd > 0 {
				w.buf = w.buf[:len(w.buf)+blockSize-odd]
				clear(w.buf[len(w.buf)-(blockSize-odd):])
			}
		}
		w.hash()
	}
	w.key.Sum(c.Key[:0])
	return c, nil
}

// hash makes the leaves of the blocks that are whole.
func (w *spoolWriter) hash() {
	for ; w.hashed+blockSize <= len(w.buf); w.hashed += blockSize {
		h := sha256.Sum256(w.buf[w.hashed:][:blockSize])
		w.sums = append(w.sums, h[:]...)
		w.key.Write(h[:])
	}
}

// flush writes what is buffered: whole blocks, for it is called when the buffer is full or a content has ended.
func (w *spoolWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	if _, err := w.data.WriteAt(w.buf, w.off); err != nil {
		return fmt.Errorf("writing spool: %w", err)
	}
	if _, err := w.leaves.WriteAt(w.sums, w.off/blockSize*hashSize); err != nil {
		return fmt.Errorf("writing spool: %w", err)
	}
	w.off += int64(len(w.buf))
	w.buf, w.sums, w.hashed = w.buf[:0], w.sums[:0], 0
	return nil
}
