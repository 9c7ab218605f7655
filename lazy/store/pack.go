package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

// A pack is the file "layers" beside an image: what else is known of the image's layers, for another image on the same ones. It is:
//
//	magic
//	sections, each a zstd frame with a checksum
//	table: of each section the layer's digest (32 bytes), its name, the bytes that its frame has and those it inflates to
//	SHA-256 of the table, length of the table (8 bytes, little endian), magic
//
// Numbers are variable-length integers; a name comes behind its length.
const (
	packName   = "layers"
	packMagic  = "pexpack1"
	packFooter = hashSize + 8 + len(packMagic)
	packTable  = 1 << 20 // bytes of the largest table
	packWindow = 1 << 20 // of the decoder
)

// section is a row of a pack's table.
type section struct {
	layer, name    string // the digest in hex
	off, n, length int64  // of the frame in the file, and what it inflates to
}

// PackWriter writes a pack where no other process looks. Keep or Discard follows. One goroutine may use it.
type PackWriter struct {
	s    *Store
	f    *os.File
	out  spareWriter // to f
	z    *zstd.Encoder
	at   int64
	rows []section
}

// NewPack begins a pack, which is written within the folder's budget until ctx ends. One that is kept has each of a layer's sections once.
func (s *Store) NewPack(ctx context.Context) (*PackWriter, error) {
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "pack-*")
	if err != nil {
		return nil, fmt.Errorf("packing layers: %w", err)
	}
	w := &PackWriter{s: s, f: f, out: spareWriter{ctx, s, f}, at: int64(len(packMagic))}
	w.z, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(packWindow))
	if err == nil {
		_, err = f.WriteString(packMagic)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("packing layers: %w", err), w.Discard())
	}
	return w, nil
}

// spareWriter writes to a file of the folder as long as the budget has room without anything being removed for it: one can do without a pack.
type spareWriter struct {
	ctx context.Context
	s   *Store
	f   *os.File
}

func (w spareWriter) Write(p []byte) (int, error) {
	if w.s.bounded() {
		release, err := w.s.reserveOf(w.ctx, int64(len(p)), nil)
		if err != nil {
			return 0, err
		}
		defer release()
	}
	n, err := w.f.Write(p)
	return n, unwritable(err)
}

// Index adds an index, which LayerIndex gives back.
func (w *PackWriter) Index(hexDigest, name string, b []byte) error {
	return w.Section(hexDigest, indexName(name), func(w io.Writer) error { return second(w.Write(b)) })
}

// Section adds what write writes, for a layer (its digest in hex) under a name, which no other section of it has.
func (w *PackWriter) Section(hexDigest, name string, write func(io.Writer) error) error {
	if !isHex(hexDigest) {
		return fmt.Errorf("%.80q is not a SHA-256", hexDigest)
	}
	out := &counter{w: bufio.NewWriterSize(w.out, 1<<20)}
	w.z.Reset(out)
	in := &counter{w: w.z}
	err := write(in)
	if err == nil {
		err = w.z.Close()
	}
	if err == nil {
		err = out.w.(*bufio.Writer).Flush()
	}
	if err != nil {
		return fmt.Errorf("packing layer sha256:%s: %w", hexDigest, err)
	}
	w.rows = append(w.rows, section{hexDigest, name, w.at, out.n, in.n})
	w.at += out.n
	return nil
}

// Keep makes the pack that of an image.
func (w *PackWriter) Keep(k Key) error {
	var b []byte
	for _, r := range w.rows {
		digest, _ := hex.DecodeString(r.layer) // it was looked at
		b = append(b, digest...)
		b = append(binary.AppendUvarint(b, uint64(len(r.name))), r.name...)
		b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(r.n)), uint64(r.length))
	}
	sum := sha256.Sum256(b)
	b = append(binary.LittleEndian.AppendUint64(append(b, sum[:]...), uint64(len(b))), packMagic...)
	_, err := w.out.Write(b)
	if err == nil {
		err = w.f.Sync()
	}
	if err == nil {
		err = w.f.Close()
	}
	dir := w.s.imageDir(k)
	if err == nil {
		err = os.Rename(w.f.Name(), filepath.Join(dir, packName))
	}
	if err == nil {
		err = syncFile(dir)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("packing layers of image %s: %w", k, err), w.Discard())
	}
	w.z.Close()
	return nil
}

// Discard removes a pack that wasn't kept.
func (w *PackWriter) Discard() error {
	if w.z != nil {
		w.z.Close()
	}
	w.f.Close()
	err := os.Remove(w.f.Name())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// Packed tells whether an image has a pack that can be read.
func (s *Store) Packed(k Key) bool {
	f, _, err := s.openPack(k)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// CheckPack reads an image's pack whole. The error wraps ErrDamaged, or ErrNotCached where there is none.
func (s *Store) CheckPack(k Key) error {
	f, rows, err := s.openPack(k)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, row := range rows {
		r, err := row.open(f)
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			r.z.Close()
		}
		if err != nil {
			return fmt.Errorf("%w: %s of image %s: %w", ErrDamaged, packName, k, err)
		}
	}
	return nil
}

// RemovePack removes an image's pack, if it has one.
func (s *Store) RemovePack(k Key) error {
	err := os.Remove(filepath.Join(s.imageDir(k), packName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// EachPacked calls f with what packs of images have of a layer (its digest in hex) under a name, and how many bytes that is, until f wants
// no more. What can't be read of a pack is as if it weren't there.
func (s *Store) EachPacked(hexDigest, name string, f func(r io.Reader, size int64) (more bool)) error {
	all, err := os.ReadDir(filepath.Join(s.dir, "images"))
	if err != nil {
		return fmt.Errorf("listing images: %w", err)
	}
	for _, d := range all {
		if pack, rows, err := s.openPack(Key(d.Name())); err == nil {
			more := eachSection(pack, rows, hexDigest, name, f)
			pack.Close()
			if !more {
				break
			}
		}
	}
	return nil
}

func eachSection(pack *os.File, rows []section, hexDigest, name string, f func(io.Reader, int64) bool) (more bool) {
	for _, row := range rows {
		if row.layer != hexDigest || row.name != name {
			continue
		}
		if r, err := row.open(pack); err == nil {
			defer r.z.Close()
			return f(r, row.length) // a layer has no other section of that name
		}
	}
	return true
}

// openPack opens the pack of an image and reads its table.
func (s *Store) openPack(k Key) (f *os.File, rows []section, err error) {
	if !isHex(string(k)) {
		return nil, nil, fmt.Errorf("%.80q is not an image key", k)
	}
	f, err = os.Open(filepath.Join(s.imageDir(k), packName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%w: %s of image %s", ErrNotCached, packName, k)
	}
	if err != nil {
		return nil, nil, err
	}
	if rows, err = readTable(f); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%w: %s of image %s: %w", ErrDamaged, packName, k, err), f.Close())
	}
	return f, rows, nil
}

var errPack = errors.New("it has other bytes on disk")

func readTable(f *os.File) ([]section, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	foot := make([]byte, packFooter)
	if st.Size() < int64(len(packMagic)+packFooter) {
		return nil, errPack
	}
	end := st.Size() - int64(packFooter)
	if _, err := f.ReadAt(foot, end); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint64(foot[hashSize:])
	if string(foot[hashSize+8:]) != packMagic || n > packTable || int64(n) > end-int64(len(packMagic)) {
		return nil, errPack
	}
	b := make([]byte, n)
	if _, err := f.ReadAt(b, end-int64(n)); err != nil {
		return nil, err
	}
	if sha256.Sum256(b) != [hashSize]byte(foot) {
		return nil, errPack
	}
	var rows []section
	at := int64(len(packMagic))
	for r := bytes.NewReader(b); r.Len() > 0; {
		var digest [hashSize]byte
		if _, err := io.ReadFull(r, digest[:]); err != nil {
			return nil, errPack
		}
		size, err := binary.ReadUvarint(r)
		if err != nil || size > uint64(r.Len()) {
			return nil, errPack
		}
		name := make([]byte, size)
		r.Read(name)
		packed, err := binary.ReadUvarint(r)
		if err != nil || int64(packed) < 0 || int64(packed) > end-int64(n)-at {
			return nil, errPack
		}
		length, err := binary.ReadUvarint(r)
		if err != nil || int64(length) < 0 {
			return nil, errPack
		}
		rows = append(rows, section{hex.EncodeToString(digest[:]), string(name), at, int64(packed), int64(length)})
		at += int64(packed)
	}
	return rows, nil
}

// open inflates a section of a pack.
func (row section) open(pack io.ReaderAt) (*unpacker, error) {
	z, err := zstd.NewReader(bufio.NewReader(io.NewSectionReader(pack, row.off, row.n)),
		zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(packWindow))
	return &unpacker{z, row.length}, err
}

// unpacker reads a section, which must have as many bytes as the table says.
type unpacker struct {
	z    *zstd.Decoder
	left int64
}

func (u *unpacker) Read(p []byte) (int, error) {
	n, err := u.z.Read(p)
	u.left -= int64(n)
	if u.left < 0 || err == io.EOF && u.left > 0 {
		return 0, errPack
	}
	return n, err
}
