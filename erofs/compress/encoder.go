package compress

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// encoder compresses one segment after the other: src to the beginning of dst, giving the length, or 0 if dst is too short.
type encoder func(dst, src []byte) (int, error)

func newEncoder(o Options) (encoder, error) {
	switch o.Algorithm {
	case LZ4:
		return newLZ4(o.Level)
	case Zstd:
		return newZstd(o.Level)
	}
	return nil, fmt.Errorf("compressing: %v is no algorithm", o.Algorithm)
}

func newLZ4(level int) (encoder, error) {
	levels := [...]lz4.CompressionLevel{1: lz4.Level1, lz4.Level2, lz4.Level3, lz4.Level4, lz4.Level5, lz4.Level6, lz4.Level7, lz4.Level8, lz4.Level9}
	if level < 0 || level >= len(levels) {
		return nil, fmt.Errorf("compressing: level %d of lz4: it must be 1 to %d, or 0 for the default", level, len(levels)-1)
	}
	compress := new(lz4.Compressor).CompressBlock
	if level > 0 {
		compress = (&lz4.CompressorHC{Level: levels[level]}).CompressBlock
	}
	return func(dst, src []byte) (int, error) {
		n, err := compress(src, dst)
		if errors.Is(err, lz4.ErrInvalidSourceShortBuffer) {
			return 0, nil
		}
		return n, err
	}, nil
}

func newZstd(level int) (encoder, error) {
	const defaultLevel, maxLevel = 3, 22
	if level < 0 || level > maxLevel {
		return nil, fmt.Errorf("compressing: level %d of zstd: it must be 1 to %d, or 0 for the default", level, maxLevel)
	}
	if level == 0 {
		level = defaultLevel
	}
	// a window as big as the segment whatever the level, no checksum: Linux has no use for it
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true), zstd.WithWindowSize(segmentSize))
	if err != nil {
		return nil, err
	}
	var buf []byte
	return func(dst, src []byte) (int, error) {
		buf = e.EncodeAll(src, buf[:0])
		if len(buf) > len(dst) {
			return 0, nil
		}
		return copy(dst, buf), nil
	}, nil
}
