package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrFormat is wrapped by errors about a file that isn't a kernel this package can read.
var ErrFormat = errors.New("not a kernel in a known format")

const (
	maxImage   = 512 << 20 // of a kernel file and of what is in it, in bytes
	elfMagic   = "\x7fELF"
	setupMagic = "HdrS"
)

// header is what this package needs of a bzImage's setup header (Linux: Documentation/arch/x86/boot.rst).
type header struct {
	versionOff int64 // of the version's text, 0 if it has none
	payloadOff int64
	payloadLen int64
}

// readHeader reads the setup header. ELF files have none: ok is false.
func readHeader(r io.ReaderAt) (h header, ok bool, err error) {
	var b [0x250]byte
	if n, err := r.ReadAt(b[:], 0); err != nil && (err != io.EOF || n < len(elfMagic)) {
		return header{}, false, fmt.Errorf("%w: reading header: %w", ErrFormat, err)
	}
	if string(b[:4]) == elfMagic {
		return header{}, false, nil
	}
	if binary.LittleEndian.Uint16(b[0x1fe:]) != 0xaa55 || string(b[0x202:0x206]) != setupMagic {
		return header{}, false, fmt.Errorf("%w: neither ELF nor bzImage", ErrFormat)
	}
	if v := binary.LittleEndian.Uint16(b[0x206:]); v < 0x208 {
		return header{}, false, fmt.Errorf("%w: boot protocol %#x, want 0x208 or later", ErrFormat, v)
	}
	sects := int64(b[0x1f1])
	if sects == 0 {
		sects = 4
	}
	h = header{
		payloadOff: (sects+1)*512 + int64(binary.LittleEndian.Uint32(b[0x248:])),
		payloadLen: int64(binary.LittleEndian.Uint32(b[0x24c:])),
	}
	if off := int64(binary.LittleEndian.Uint16(b[0x20e:])); off != 0 {
		h.versionOff = off + 512
	}
	return h, true, nil
}

// version is the first word of a bzImage's version text, "" for an ELF file.
func version(r io.ReaderAt) (string, error) {
	h, ok, err := readHeader(r)
	if err != nil || !ok || h.versionOff == 0 {
		return "", err
	}
	b := make([]byte, 256)
	n, err := r.ReadAt(b, h.versionOff)
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("reading version: %w", err)
	}
	end := bytes.IndexAny(b[:n], " \x00")
	if end <= 0 || bytes.ContainsAny(b[:end], "/") || b[0] == '.' {
		return "", fmt.Errorf("%w: malformed version", ErrFormat)
	}
	return string(b[:end]), nil
}
