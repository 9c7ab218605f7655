package layer

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"io"
)

// BlocksKey is the key of a content of a streamed layer that has size bytes, in blocks of 4 KiB whose SHA-256 are leaves; the last one
// is padded with zeros.
func BlocksKey(size int64, leaves []byte) (k Key) {
	h := sha256.New()
	beginBlocks(h, size)
	_, _ = h.Write(leaves) // a hash never fails
	h.Sum(k[:0])
	return k
}

// beginBlocks writes to h what comes before the leaves.
func beginBlocks(h hash.Hash, size int64) {
	_, _ = io.WriteString(h, "pex blocks 1")
	_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, uint64(size)))
}
