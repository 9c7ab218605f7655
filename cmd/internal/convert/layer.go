package convert

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"path"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/ref"
)

// parallel is the number of parts that estargz compresses at a time. It is fixed because it decides where members of the
// result begin: the same image gives the same bytes on every machine.
const parallel = 4

// maxWindow bounds the memory of a zstd decoder, in bytes: what zstd --ultra -22 --long=27 makes can be read.
const maxWindow = 128 << 20

// convertLayer converts l.From into l.To and puts that at the target.
func (c *converter) convertLayer(ctx context.Context, l *converted) error {
	mt, err := ociType(l.From.MediaType)
	if err != nil {
		return err
	}
	src := blob.Retry(c.source.Blob(l.From), c.o.Source.Retry)
	kept := "it has a table of contents already"
	if _, err := layer.ReadTOC(ctx, src, l.From, layer.Limits{}); errors.Is(err, layer.ErrNoTOC) {
		kept = ""
	} else if err != nil {
		return err
	}
	if kept == "" {
		if kept, err = c.rewrite(ctx, l, src); err != nil {
			return err
		}
	}
	if kept == "" {
		return nil
	}
	l.Kept = kept
	l.To = l.From
	l.To.MediaType = mt
	c.tell(Event{Layer: l.From.Digest, Step: Sending})
	l.Sent, err = c.target.blob(ctx, l.To, func(ctx context.Context) (io.ReadCloser, error) {
		return c.fetch(ctx, src, l.From)
	})
	return err
}

// ociType is the OCI media type of a layer that is copied as it is.
func ociType(mt types.MediaType) (types.MediaType, error) {
	switch mt {
	case types.DockerLayer:
		return types.OCILayer, nil
	case types.DockerUncompressedLayer:
		return types.OCIUncompressedLayer, nil
	case "application/vnd.docker.image.rootfs.diff.tar.zstd":
		return types.OCILayerZStd, nil
	case types.OCILayer, types.OCILayerZStd, types.OCIUncompressedLayer:
		return mt, nil
	}
	return "", fmt.Errorf("%w: a layer of type %.100q", ref.ErrUnsupported, mt)
}

// rewrite makes an eStargz layer of l.From and puts it at the target, or says why that can't be.
func (c *converter) rewrite(ctx context.Context, l *converted, src blob.Source) (kept string, err error) {
	plain, err := tempFile(c.o.TempDir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, plain.Close()) }()
	size, err := c.unpack(ctx, src, l.From, l.diffID, plain)
	if err != nil {
		return "", err
	}
	if kept, err = unfit(ctx, plain); kept != "" || err != nil {
		return kept, err
	}
	c.tell(Event{Layer: l.From.Digest, Step: Building})
	built, err := tempFile(c.o.TempDir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, built.Close()) }()
	if err := c.build(ctx, l, io.NewSectionReader(&ctxReaderAt{ctx, plain}, 0, size), built); err != nil {
		return "", cmp.Or(ctx.Err(), fmt.Errorf("building: %w", err))
	}
	c.tell(Event{Layer: l.From.Digest, Step: Sending})
	l.Sent, err = c.target.blob(ctx, l.To, func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(built, 0, l.To.Size)), nil
	})
	return "", err
}

// build writes tar as eStargz to out, and fills l.To and l.diffID. It ends with ctx when tar does: given a context itself,
// the library leaves files behind.
func (c *converter) build(ctx context.Context, l *converted, tar *io.SectionReader, out io.Writer) (err error) {
	b, err := estargz.Build(tar, estargz.WithParallelism(parallel), estargz.WithCompression(newCompression(c.o.Level)),
		estargz.WithChunkSize(c.o.ChunkSize), estargz.WithMinChunkSize(c.o.MinChunkSize))
	if err != nil {
		return err
	}
	digest := sha256.New()
	size, err := io.Copy(io.MultiWriter(out, digest), &ctxReader{ctx, b})
	if err != nil {
		// The builder's goroutine waits for a reader; its files are gone when it is done.
		_, _ = io.Copy(io.Discard, b)
		return errors.Join(err, b.Close())
	}
	plainSize, err := b.UncompressedSize()
	if err = errors.Join(err, b.Close()); err != nil {
		return err
	}
	if l.diffID, err = v1.NewHash(b.DiffID().String()); err != nil {
		return err
	}
	l.To = v1.Descriptor{MediaType: types.OCILayer, Digest: sum(digest), Size: size, Annotations: annotations(l.From.Annotations)}
	l.To.Annotations[estargz.TOCJSONDigestAnnotation] = b.TOCDigest().String()
	l.To.Annotations[estargz.StoreUncompressedSizeAnnotation] = strconv.FormatInt(plainSize, 10)
	return nil
}

// annotations copies those that don't speak of the old layer's bytes.
func annotations(old map[string]string) map[string]string {
	as := maps.Clone(old)
	if as == nil {
		as = map[string]string{}
	}
	maps.DeleteFunc(as, func(k, _ string) bool {
		return strings.HasPrefix(k, "io.github.containers.zstd-chunked.") || strings.HasPrefix(k, "io.containers.zstd-chunked.")
	})
	return as
}

func sum(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

// fetch opens the whole of a layer. What comes is verified: a wrong byte or a missing one is an error at the end.
func (c *converter) fetch(ctx context.Context, src blob.Source, d v1.Descriptor) (io.ReadCloser, error) {
	h, err := v1.Hasher(d.Digest.Algorithm)
	if err != nil {
		return nil, err
	}
	rc := io.NopCloser(io.Reader(bytes.NewReader(nil)))
	if d.Size > 0 {
		if rc, err = src.Fetch(ctx, 0, d.Size); err != nil {
			return nil, err
		}
	}
	return &verifier{ReadCloser: rc, c: c, desc: d, h: h}, nil
}

// verifier hashes what is read through it and tells of the progress.
type verifier struct {
	io.ReadCloser
	c          *converter
	desc       v1.Descriptor
	h          hash.Hash
	done, told int64
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.ReadCloser.Read(p)
	v.h.Write(p[:n])
	v.done += int64(n)
	if v.done-v.told >= 1<<20 || err == io.EOF {
		v.told = v.done
		v.c.tell(Event{Layer: v.desc.Digest, Step: Fetching, Done: v.done, Total: v.desc.Size})
	}
	if err != io.EOF {
		return n, err
	}
	if got := hex.EncodeToString(v.h.Sum(nil)); got != v.desc.Digest.Hex {
		return n, fmt.Errorf("%w: the blob is %s:%s", blob.ErrDigestMismatch, v.desc.Digest.Algorithm, got)
	}
	return n, io.EOF
}

// unpack writes a layer's tar to f and verifies its digest and diffID. It gives the tar's size.
func (c *converter) unpack(ctx context.Context, src blob.Source, d v1.Descriptor, diffID v1.Hash, f io.Writer) (size int64, err error) {
	rc, err := c.fetch(ctx, src, d)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, rc.Close()) }()
	packed := bufio.NewReaderSize(rc, 256<<10)
	plain, end, err := decompress(packed)
	if err != nil {
		return 0, fmt.Errorf("unpacking: %w", err)
	}
	defer end()
	h, err := v1.Hasher(diffID.Algorithm)
	if err != nil {
		return 0, err
	}
	if size, err = io.Copy(io.MultiWriter(f, h), plain); err != nil {
		return 0, fmt.Errorf("unpacking: %w", err)
	}
	// The decoder may not have read to the end, where the digest is checked.
	if _, err := io.Copy(io.Discard, packed); err != nil {
		return 0, err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != diffID.Hex {
		return 0, fmt.Errorf("%w: the tar is %s:%s, the configuration says %s", blob.ErrDigestMismatch, diffID.Algorithm, got, diffID)
	}
	return size, nil
}

// decompress tells by the first bytes how r is compressed: media types are wrong often enough.
func decompress(r *bufio.Reader) (plain io.Reader, end func(), err error) {
	magic, err := r.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		return z, func() {}, err
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}),
		len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18}): // a skippable frame first
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return r, func() {}, nil
}

// unfit says why a tar can't be made into eStargz such that it means the same, or nothing if it can: the library would fail
// at it, or silently change it.
func unfit(ctx context.Context, f io.ReadSeeker) (string, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	names := map[string]bool{} // whether it is a directory
	for r := tar.NewReader(f); ; {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		h, err := r.Next()
		if err == io.EOF {
			return "", nil
		} else if err != nil {
			return "", fmt.Errorf("reading tar: %w", err)
		}
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		default:
			return fmt.Sprintf("%q is an entry of type %q", h.Name, h.Typeflag), nil
		}
		for k := range h.PAXRecords {
			if strings.HasPrefix(k, "GNU.sparse.") {
				return fmt.Sprintf("%q is a sparse file", h.Name), nil
			}
		}
		if !utf8.ValidString(h.Name) || !utf8.ValidString(h.Linkname) {
			return fmt.Sprintf("%q is not UTF-8", h.Name), nil
		}
		name, dir := path.Clean("/"+h.Name), h.Typeflag == tar.TypeDir
		if before, twice := names[name]; twice && !(dir && before) {
			return fmt.Sprintf("%q is there twice", h.Name), nil
		}
		names[name] = dir
	}
}

// tempFile makes a file that is gone when it is closed.
func tempFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "pex-convert-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// ctxReader reads until ctx ends.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// ctxReaderAt reads until ctx ends.
type ctxReaderAt struct {
	ctx context.Context
	r   io.ReaderAt
}

func (r *ctxReaderAt) ReadAt(p []byte, off int64) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.ReadAt(p, off)
}
