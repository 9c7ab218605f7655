package machine

import (
	"context"
	"errors"
	"fmt"
)

// lateSize is the size of a disk whose image isn't known yet, in bytes: more than any image has. The file system on it
// knows its own size.
const lateSize = 1 << 44

// lateDisk is the disk of a machine that boots while its image is being opened. Reads wait for the image.
type lateDisk struct {
	ready chan struct{} // closed when image is set
	image Image
}

var errBehindImage = errors.New("the guest reads behind the image's end")

// open waits for the image, until ctx ends. One that can't be the disk is an error.
func (d *lateDisk) open(ctx context.Context, o *opening, patient func(Image) Image) error {
	image, err := o.wait(ctx)
	if err != nil {
		return err
	}
	if image.Size() > lateSize {
		return fmt.Errorf("using blk as the root: the image has %d bytes, more than %d", image.Size(), int64(lateSize))
	}
	d.image = patient(image)
	close(d.ready)
	return nil
}

// Size is part of vhostuser.Disk.
func (d *lateDisk) Size() int64 { return lateSize }

// ReadAt is part of vhostuser.Disk.
func (d *lateDisk) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	select {
	case <-d.ready:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	if size := d.image.Size(); off > size || int64(len(p)) > size-off {
		return 0, errBehindImage
	}
	return d.image.ReadAt(ctx, p, off)
}

// ReadFd is part of vhostuser.FdDisk.
func (d *lateDisk) ReadFd(off int64, n int) (fd uintptr, fdOff int64, ok bool) {
	select {
	case <-d.ready:
		return d.image.ReadFd(off, n)
	default:
		return 0, 0, false
	}
}
