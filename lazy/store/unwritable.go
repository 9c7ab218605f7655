package store

import (
	"context"
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

// distrust looks again at all blocks of an image that a failing disk may have lost: what the system holds in memory of the file says
// nothing of that.
func (im *Image) distrust() error {
	if err := unix.Fadvise(int(im.f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	return im.recheck(context.Background())
}
