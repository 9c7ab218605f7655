package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrUnwritable is wrapped where the folder takes no more: its file system is full or read-only, a quota is used up, or the disk fails.
var ErrUnwritable = errors.New("the cache can't be written")

// unwritable is err, of a file of the folder, wrapping ErrUnwritable if it says that there is no writing at all for now.
func unwritable(err error) error {
	for _, e := range [...]error{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO} {
		if errors.Is(err, e) && !errors.Is(err, ErrUnwritable) {
			return fmt.Errorf("%w: %w", ErrUnwritable, err)
		}
	}
	return err
}

// mapped calls f, which writes to mapped files. Where their disk takes nothing, as one that has failed or one whose file system
// copies what it writes and is full, that is an error.
func mapped(f func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch r := recover().(type) {
		case nil:
		case interface {
			error
			Addr() uintptr // of a fault
		}:
			err = fmt.Errorf("%w: writing a mapped file: %w", ErrUnwritable, syscall.EIO)
		default:
			panic(r)
		}
	}()
	f()
	return nil
}

// TryWriting tells whether n bytes could be written to the folder, making room for them. The error wraps ErrUnwritable, or is ctx's.
func (s *Store) TryWriting(ctx context.Context, n int64) error {
	release, err := s.Reserve(ctx, n)
	if err != nil {
		return err
	}
	defer release()
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "try-*")
	if err == nil {
		if err = reserve(f, n); err == nil {
			_, err = f.Write(make([]byte, BlockSize))
		}
		if err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	if err != nil && !errors.Is(unwritable(err), ErrUnwritable) {
		return fmt.Errorf("%w: %w", ErrUnwritable, err)
	}
	return unwritable(err)
}

// Recheck makes those blocks present that are on disk and what their Merkle leaf says, after Seal has failed: what the system holds in memory
// of the file may be what the disk has lost. The image is to be opened anew. The error is ctx's, or wraps ErrUnwritable.
func (im *Image) Recheck(ctx context.Context) error {
	if err := unix.Fadvise(int(im.f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("checking image %s: %w", im.Info.Key, err)
	}
	var zero [hashSize]byte
	buf := make([]byte, 1<<20)
	for b := int64(0); b < im.blocks; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), (im.blocks-b)*BlockSize)]
		bad := map[int64]bool{}
		if _, err := im.f.ReadAt(p, b*BlockSize); err != nil { // which of them can't be read?
			for i := range int64(len(p)) / BlockSize {
				_, err := im.f.ReadAt(p[i*BlockSize:][:BlockSize], (b+i)*BlockSize)
				bad[i] = err != nil
			}
		}
		err := im.marked(func() {
			for i := range int64(len(p)) / BlockSize {
				l := [hashSize]byte(im.tree.leaf(b + i))
				if !bad[i] && l != zero && sha256.Sum256(p[i*BlockSize:][:BlockSize]) == l {
					im.present.set(b+i, 1)
				}
			}
		})
		if err != nil {
			return err
		}
		b += int64(len(p)) / BlockSize
	}
	return nil
}
