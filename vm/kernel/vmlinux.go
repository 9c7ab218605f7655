package kernel

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// ErrNoPVH is wrapped by Vmlinux's error when the kernel has no PVH entry: a VMM must boot the bzImage then.
var ErrNoPVH = errors.New("kernel without a PVH entry")

// Vmlinux returns the path of an ELF file with a PVH entry that is the kernel at path, unpacked, which saves the guest
// from unpacking it at every boot. It is path itself if that is such a file; else it is kept in the folder of kernels,
// dir, under a name that stands for this state of the file: its size, times and inode, as reading all of it takes as
// long as some machines take to boot.
func Vmlinux(path, dir string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("unpacking kernel: %w", err)
	}
	defer f.Close()
	h, packed, err := readHeader(f)
	if err == nil && !packed {
		err = checkPVH(f)
		if err == nil {
			return path, nil
		}
	}
	if err != nil {
		return "", fmt.Errorf("unpacking kernel %s: %w", path, err)
	}
	name, err := stateName(f)
	if err != nil {
		return "", fmt.Errorf("unpacking kernel: %w", err)
	}
	out := filepath.Join(dir, "elf", name)
	if _, err := os.Stat(out); err == nil {
		return out, nil // it was synced before it got its name
	}
	image, err := readAll(f, maxImage)
	if err != nil {
		return "", fmt.Errorf("unpacking kernel %s: %w", path, err)
	}
	vmlinux, err := unpack(image, h)
	if err == nil {
		err = checkPVH(bytes.NewReader(vmlinux))
	}
	if err != nil {
		return "", fmt.Errorf("unpacking kernel %s: %w", path, err)
	}
	if err := writeFile(out, vmlinux); err != nil {
		return "", fmt.Errorf("unpacking kernel %s, which takes %d bytes: %w", path, len(vmlinux), err)
	}
	return out, nil
}

// stateName is the SHA-256 of what tells whether a file has changed.
func stateName(f *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", fmt.Errorf("looking at %s: %w", f.Name(), err)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "pex kernel 1 %d %d %d %d.%d %d.%d", st.Dev, st.Ino, st.Size,
		st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec))
	return hex.EncodeToString(sum[:]), nil
}

// writeFile makes a file that has all of b, or doesn't exist. It is a no-op if another process was faster.
func writeFile(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o444), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// readAll reads all of r, which has at most limit bytes.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%w: more than %d bytes", ErrFormat, limit)
	}
	return b, err
}

// unpack returns the payload of a bzImage.
func unpack(image []byte, h header) ([]byte, error) {
	if h.payloadOff+h.payloadLen > int64(len(image)) || h.payloadLen < 8 {
		return nil, fmt.Errorf("%w: payload of %d bytes at %d in a file of %d", ErrFormat, h.payloadLen, h.payloadOff, len(image))
	}
	p := image[h.payloadOff : h.payloadOff+h.payloadLen]
	if string(p[:4]) == elfMagic {
		return p, nil
	}
	// All but gzip, which has it anyway, get the unpacked size behind the data.
	body := p[:len(p)-4]
	size := int64(binary.LittleEndian.Uint32(p[len(p)-4:]))
	if size > maxImage {
		return nil, fmt.Errorf("%w: payload of %d bytes unpacked", ErrFormat, size)
	}
	var b []byte
	var err error
	switch {
	case bytes.HasPrefix(p, []byte(lz4Magic)):
		b, err = unpackLZ4(body, int(size))
	case bytes.HasPrefix(p, []byte("\x1f\x8b")):
		var r *gzip.Reader
		if r, err = gzip.NewReader(bytes.NewReader(p)); err == nil {
			r.Multistream(false)
			b, err = readAll(r, size)
		}
	case bytes.HasPrefix(p, []byte(zstdMagic)):
		var r *zstd.Decoder
		if r, err = zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderConcurrency(1)); err == nil {
			b, err = readAll(r, size)
			r.Close()
		}
	case bytes.HasPrefix(p, []byte(xzMagic)):
		b, err = unxz(body, size)
	default:
		return nil, fmt.Errorf("%w: payload begins with % x", ErrFormat, p[:4])
	}
	if err == nil && int64(len(b)) != size {
		err = fmt.Errorf("%w: payload has %d bytes, its header says %d", ErrFormat, len(b), size)
	}
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	return b, nil
}

// checkPVH looks for the note that holds the 32-bit entry point (Xen: xen/include/public/elfnote.h, PHYS32_ENTRY).
func checkPVH(r io.ReaderAt) error {
	const (
		phys32Entry = 18
		maxNotes    = 1 << 20
	)
	f, err := elf.NewFile(r)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > maxNotes {
			continue
		}
		b, err := io.ReadAll(p.Open())
		if err != nil {
			return fmt.Errorf("%w: reading notes: %w", ErrFormat, err)
		}
		for len(b) >= 12 {
			name, desc := f.ByteOrder.Uint32(b), f.ByteOrder.Uint32(b[4:])
			typ := f.ByteOrder.Uint32(b[8:])
			b = b[12:]
			n := (uint64(name)+3)&^3 + (uint64(desc)+3)&^3
			if n > uint64(len(b)) {
				break
			}
			if typ == phys32Entry && name == 4 && string(b[:4]) == "Xen\x00" {
				return nil
			}
			b = b[n:]
		}
	}
	return ErrNoPVH
}
