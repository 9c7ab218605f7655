package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/inflate"
)

// Annotations of a layer's descriptor that vouch for its TOC.
const (
	// of eStargz: the digest of the TOC's JSON
	tocDigest = "containerd.io/snapshot/stargz/toc.digest"
	// of zstd:chunked: "offset:compressed length:length:type", and the digest of the compressed TOC; as containers/image
	// writes them, and as the estargz package does
	imagePosition, imageChecksum     = "io.github.containers.zstd-chunked.manifest-position", "io.github.containers.zstd-chunked.manifest-checksum"
	estargzPosition, estargzChecksum = "io.containers.zstd-chunked.manifest-position", "io.containers.zstd-chunked.manifest-checksum"
)

// ReadTOC reads a layer's TOC and checks it against the annotations of d. An eStargz layer takes one request for the
// blob's end, and a second one if the TOC begins before that; zstd:chunked takes one. The error wraps ErrNoTOC where
// there is no TOC that can be used, blob.ErrDigestMismatch where it isn't the one that is vouched for, and ErrLimit where
// it or what it lists is beyond lim. A TOC that points outside of the blob, overlaps or contradicts itself is refused with
// none of these.
func ReadTOC(ctx context.Context, src blob.Source, d v1.Descriptor, lim Limits) (*Index, error) {
	return readTOC(ctx, src, d.Annotations, lim.withDefaults())
}

func readTOC(ctx context.Context, src blob.Source, a map[string]string, lim Limits) (*Index, error) {
	if a[imagePosition] != "" && a[imageChecksum] != "" {
		return readZstdTOC(ctx, src, a[imagePosition], a[imageChecksum], lim)
	}
	if a[estargzPosition] != "" && a[estargzChecksum] != "" {
		return readZstdTOC(ctx, src, a[estargzPosition], a[estargzChecksum], lim)
	}
	if a[tocDigest] != "" {
		return readGzipTOC(ctx, src, a[tocDigest], lim)
	}
	return nil, noTOC("the manifest vouches for none")
}

// tailSize is how much of a blob's end to fetch in the hope that it holds the TOC. Those of real layers have 0.02 to 0.7 % of the blob, more
// where files are many and small. Beyond 512 KiB a second request costs less than what is fetched in vain: that much goes over a link
// of 200 Mbit/s in 20 ms, and the second requests of all layers are under way at once.
func tailSize(size int64) int64 { return min(size, max(128<<10, min(size/128, 512<<10))) }

func readGzipTOC(ctx context.Context, src blob.Source, want string, lim Limits) (*Index, error) {
	digest, err := parseSHA256([]byte(want))
	if err != nil {
		return nil, noTOC("its annotation: %v", err)
	}
	size := src.Size()
	n := tailSize(size)
	if n < legacyFooterSize {
		return nil, noTOC("the blob has %d bytes", size)
	}
	tail, err := fetch(ctx, src, size-n, n)
	if err != nil {
		return nil, err
	}
	off, foot, ok := parseFooter(tail)
	compressed := size - off - foot
	var head io.Reader = strings.NewReader("")
	switch start := size - n; {
	case !ok:
		return nil, noTOC("the blob has no eStargz footer")
	case compressed <= 0:
		return nil, fmt.Errorf("reading TOC: the footer says that it is at %d of %d", off, size)
	case off < start:
		if err := boundTOC(compressed, lim); err != nil {
			return nil, err
		}
		r, err := src.Fetch(ctx, off, start-off) // parsed as it comes
		if err != nil {
			return nil, fmt.Errorf("fetching TOC: bytes %d to %d: %w", off, start, err)
		}
		defer r.Close()
		head = r
	default:
		tail = tail[off-start:]
	}
	tail = tail[:int64(len(tail))-foot]
	json, length, err := untarTOC(io.MultiReader(head, bytes.NewReader(tail)), lim)
	if err != nil {
		return nil, fmt.Errorf("inflating TOC at %d: %w", off, err)
	}
	sum := sha256.New()
	ix, err, rerr := parseWhole(io.TeeReader(json, sum), likelySize(length, min(compressed, 4<<20)), off, Gzip, lim)
	if rerr != nil {
		return nil, fmt.Errorf("inflating TOC at %d: %w", off, rerr)
	}
	// what was made of another TOC means nothing, nor does an error
	if got := [32]byte(sum.Sum(nil)); got != digest {
		return nil, fmt.Errorf("%w: the TOC at %d is sha256:%x, the manifest says %s", blob.ErrDigestMismatch, off, got, want)
	}
	return ix, err
}

// parseWhole is parseTOC, of JSON that it reads to the end whatever is in it. rerr is why that could not be done.
func parseWhole(json io.Reader, likely, end int64, f Format, lim Limits) (ix *Index, err, rerr error) {
	in := &blobReader{Reader: json}
	ix, err = parseTOC(in, likely, end, f, lim)
	if in.err == nil {
		_, _ = io.Copy(io.Discard, in) // in keeps the error
	}
	if in.err != io.EOF {
		return nil, nil, unexpected(in.err)
	}
	return ix, err, nil
}

// untarTOC finds the JSON, and its length, in the gzipped tar that eStargz keeps it in. It has not been verified yet.
func untarTOC(r io.Reader, lim Limits) (json io.Reader, length int64, err error) {
	z := inflate.NewReader(r)
	z.Multistream(false)
	tr := tar.NewReader(z)
	h, err := tr.Next()
	if err != nil {
		return nil, 0, unexpected(err)
	}
	if h.Name != tocName || h.Typeflag != tar.TypeReg {
		return nil, 0, noTOC("in its place is %.100q", h.Name)
	}
	if err := boundTOC(h.Size, lim); err != nil {
		return nil, 0, err
	}
	return tr, h.Size, nil
}

// boundTOC refuses a TOC of n bytes, compressed or not, if these are too many.
func boundTOC(n int64, lim Limits) error {
	if n > maxTOC {
		return noTOC("it has %d bytes, more than %d", n, maxTOC)
	}
	if n > lim.MaxSize {
		return fmt.Errorf("%w: its table of contents has %d bytes, more than %d", ErrLimit, n, lim.MaxSize)
	}
	return nil
}

// readZstdTOC reads a TOC at position. As the position is not covered by the checksum, nothing in it is trusted.
func readZstdTOC(ctx context.Context, src blob.Source, position, checksum string, lim Limits) (*Index, error) {
	digest, err := parseSHA256([]byte(checksum))
	if err != nil {
		return nil, noTOC("its annotation: %v", err)
	}
	off, clen, ulen, err := parsePosition(position)
	if err != nil {
		return nil, err
	}
	if err := boundTOC(max(clen, ulen), lim); err != nil {
		return nil, err
	}
	if off < skippableHeader || clen == 0 || off > src.Size()-clen {
		return nil, fmt.Errorf("reading TOC: its annotation says that it is at %d+%d of %d", off, clen, src.Size())
	}
	b, err := fetch(ctx, src, off, clen)
	if err != nil {
		return nil, err
	}
	if got := sha256.Sum256(b); got != digest {
		return nil, fmt.Errorf("%w: the TOC at %d is sha256:%x, the manifest says %s", blob.ErrDigestMismatch, off, got, checksum)
	}
	json, err := unzstdTOC(b, ulen)
	if err != nil {
		return nil, fmt.Errorf("inflating TOC at %d: %w", off, err)
	}
	defer json.Close()
	ix, err, rerr := parseWhole(json, likelySize(ulen, int64(len(b))), off-skippableHeader, Zstd, lim)
	if rerr != nil {
		return nil, fmt.Errorf("inflating TOC at %d: %w", off, rerr)
	}
	return ix, err
}

// unzstd reads what b inflates to, and fails where that has not just as many bytes as it is said to have.
type unzstd struct {
	*zstd.Decoder
	size, left int64
}

func unzstdTOC(b []byte, size int64) (*unzstd, error) {
	z, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	return &unzstd{z, size, size}, err
}

func (u *unzstd) Read(p []byte) (int, error) {
	n, err := u.Decoder.Read(p)
	if u.left -= int64(n); u.left < 0 {
		return 0, fmt.Errorf("more than the %d bytes that its annotation says", u.size)
	}
	if err == io.EOF && u.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// skippableHeader is the length of what is before a skippable frame's data (RFC 8878, section 3.1.2).
const skippableHeader = 8

// parsePosition reads "offset:compressed length:length:type".
func parsePosition(s string) (off, clen, ulen int64, err error) {
	const crfs = "1" // a TOC as stargz has it, the only type
	parts := strings.Split(s, ":")
	if len(parts) != 4 || parts[3] != crfs {
		return 0, 0, 0, noTOC("its position is %.100q", s)
	}
	for i, p := range [...]*int64{&off, &clen, &ulen} {
		v, err := strconv.ParseUint(parts[i], 10, 63)
		if err != nil {
			return 0, 0, 0, noTOC("its position is %.100q", s)
		}
		*p = int64(v)
	}
	return off, clen, ulen, nil
}

// parseSHA256 reads "sha256:" and 64 hexadecimal digits.
func parseSHA256(s []byte) (digest [32]byte, err error) {
	const prefix = "sha256:"
	if len(s) != len(prefix)+64 || string(s[:len(prefix)]) != prefix {
		return digest, fmt.Errorf("%.100q is not a SHA-256", s)
	}
	if _, err := hex.Decode(digest[:], s[len(prefix):]); err != nil {
		return digest, fmt.Errorf("%.100q is not a SHA-256", s)
	}
	return digest, nil
}

// fetch fetches n bytes at off.
func fetch(ctx context.Context, src blob.Source, off, n int64) ([]byte, error) {
	r, err := src.Fetch(ctx, off, n)
	if err != nil {
		return nil, fmt.Errorf("fetching TOC: bytes %d to %d: %w", off, off+n, err)
	}
	b, err := readGrowing(r, n, min(n, 4<<20))
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("fetching TOC: bytes %d to %d: %w", off, off+n, err)
	}
	return b, nil
}

// likelySize is how many bytes to take memory for where compressed bytes are said to inflate to size.
func likelySize(size, compressed int64) int64 {
	const usual = 12 // times; TOCs have been seen to shrink to an eighth
	return min(size, compressed*usual)
}

// readGrowing reads size bytes. It takes the memory for likely bytes at once, and more only for what was read.
func readGrowing(r io.Reader, size, likely int64) ([]byte, error) {
	b := make([]byte, 0, likely)
	for int64(len(b)) < size {
		if len(b) == cap(b) {
			b = append(make([]byte, 0, min(size, 2*int64(cap(b)))), b...)
		}
		n, err := io.ReadFull(r, b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err != nil {
			return nil, unexpected(err)
		}
	}
	return b, nil
}
