package erofs

import (
	"fmt"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/pexfs/pex/erofs/disk"
)

// readCompressed reads data that is compressed. All of p lies within it.
func (im *Image) readCompressed(in Inode, p []byte, off int64) (int, error) {
	var m *clusterMap
	for n := 0; n < len(p); {
		at := off + int64(n)
		if k := im.cache.copy(p[n:], in.Nid, at); k > 0 {
			n += k
			continue
		}
		if m == nil {
			var err error
			if m, err = im.newClusterMap(in); err != nil {
				return n, err
			}
		}
		c, err := m.find(at)
		if err != nil {
			return n, err
		}
		if c.form == formPlain {
			k := int(min(int64(len(p)-n), c.off+c.size-at))
			if err := im.read(p[n:n+k], c.at+at-c.off); err != nil {
				return n, err
			}
			n += k
			continue
		}
		if c.off == at && c.size <= int64(len(p)-n) {
			if err := im.decompress(c, p[n:][:c.size]); err != nil {
				return n, err
			}
			n += int(c.size)
			continue
		}
		contents := make([]byte, c.size)
		if err := im.decompress(c, contents); err != nil {
			return n, err
		}
		n += copy(p[n:], contents[at-c.off:])
		im.cache.put(in.Nid, c.off, contents)
	}
	return len(p), nil
}

// decompress reads a cluster and fills dst, of its size, with the contents.
func (im *Image) decompress(c cluster, dst []byte) error {
	src := make([]byte, c.stored)
	if err := im.read(src, c.at); err != nil {
		return fmt.Errorf("reading cluster at %d: %w", c.at, err)
	}
	switch c.form {
	case formPlain:
		copy(dst, src)
		return nil
	case formInterlaced:
		turn := int(c.off % blockSize)
		n := copy(dst, src[turn:])
		copy(dst[n:], src)
		return nil
	}
	if im.incompat&disk.IncompatZeroPadding == 0 {
		return fmt.Errorf("%w: clusters without padding", ErrUnsupported)
	}
	if c.form > 15 || im.algorithms>>c.form&1 == 0 {
		return fmt.Errorf("%w: algorithm %d, the superblock has the set %#x", ErrInvalid, c.form, im.algorithms)
	}
	pad := slices.IndexFunc(src[:blockSize], func(b byte) bool { return b != 0 })
	if pad < 0 {
		return fmt.Errorf("%w: the cluster at %d is empty", ErrInvalid, c.at)
	}
	src = src[pad:]
	n, err := 0, error(nil)
	switch c.form {
	case disk.AlgorithmLZ4:
		n, err = lz4.UncompressBlock(src, dst)
	case disk.AlgorithmZstd:
		n, err = im.unzstd(src, dst)
	default:
		return fmt.Errorf("%w: algorithm %d", ErrUnsupported, c.form)
	}
	if err == nil && n != len(dst) {
		err = fmt.Errorf("%d bytes, want %d", n, len(dst))
	}
	if err != nil {
		return fmt.Errorf("%w: decompressing the cluster at %d+%d: %w", ErrInvalid, c.at, c.stored, err)
	}
	return nil
}

// unzstd decompresses what has one window of no more than Linux gives it.
func (im *Image) unzstd(src, dst []byte) (int, error) {
	d, err := im.zstd()
	if err != nil {
		return 0, err
	}
	b, err := d.DecodeAll(src, dst[:0:len(dst)])
	if err == nil && len(b) > 0 && &b[0] != &dst[0] {
		return 0, zstd.ErrDecoderSizeExceeded
	}
	return len(b), err
}

// newUnzstd makes a decoder that has no goroutines of its own and never writes more than there is room for.
func newUnzstd(windowLog uint8) (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxWindow(1<<windowLog), zstd.WithDecoderMaxMemory(disk.MaxClusterContents),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
}

const (
	cachedClusters = 8
	cachedBytes    = 16 << 20 // or one cluster
)

// clusterCache keeps the contents of the clusters that were read last, so that who reads a file in small pieces has each
// decompressed once. It is for concurrent use. What it holds is never changed.
type clusterCache struct {
	mu   sync.Mutex
	kept []cachedCluster // the one used last comes first
	size int
}

type cachedCluster struct {
	nid uint64
	off int64
	b   []byte
}

// copy copies to p what is known of inode nid's contents from off on, up to a cluster's end.
func (c *clusterCache) copy(p []byte, nid uint64, off int64) int {
	c.mu.Lock()
	i := slices.IndexFunc(c.kept, func(k cachedCluster) bool { return k.nid == nid && off >= k.off && off-k.off < int64(len(k.b)) })
	if i < 0 {
		c.mu.Unlock()
		return 0
	}
	hit := c.kept[i]
	copy(c.kept[1:i+1], c.kept[:i])
	c.kept[0] = hit
	c.mu.Unlock()
	return copy(p, hit.b[off-hit.off:])
}

// put keeps b, which begins at off.
func (c *clusterCache) put(nid uint64, off int64, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.ContainsFunc(c.kept, func(k cachedCluster) bool { return k.nid == nid && k.off == off }) {
		return // someone else has read it too
	}
	c.kept = slices.Insert(c.kept, 0, cachedCluster{nid, off, b})
	c.size += len(b)
	for len(c.kept) > cachedClusters || len(c.kept) > 1 && c.size > cachedBytes {
		last := len(c.kept) - 1
		c.size -= len(c.kept[last].b)
		c.kept[last] = cachedCluster{}
		c.kept = c.kept[:last]
	}
}
