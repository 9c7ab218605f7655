package convert

import (
	"io"
	"sync"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
)

// compression is estargz's gzip with writers that are used again: there is one for each chunk, of about a megabyte.
type compression struct {
	*estargz.GzipCompressor // writes the table of contents
	*estargz.GzipDecompressor
	level   int
	writers sync.Pool // of *gzip.Writer
}

var _ estargz.Compression = (*compression)(nil)

func newCompression(level int) *compression {
	return &compression{GzipCompressor: estargz.NewGzipCompressorWithLevel(level), GzipDecompressor: &estargz.GzipDecompressor{}, level: level}
}

// Writer implements estargz.Compressor.
func (c *compression) Writer(w io.Writer) (estargz.WriteFlushCloser, error) {
	if z, ok := c.writers.Get().(*gzip.Writer); ok {
		z.Reset(w)
		return &member{z, c}, nil
	}
	z, err := gzip.NewWriterLevel(w, c.level)
	if err != nil {
		return nil, err
	}
	return &member{z, c}, nil
}

// Reader implements estargz.Decompressor.
func (c *compression) Reader(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }

// member is one gzip member being written.
type member struct {
	*gzip.Writer
	c *compression
}

func (m *member) Close() error {
	err := m.Writer.Close()
	m.c.writers.Put(m.Writer)
	m.Writer = nil
	return err
}
