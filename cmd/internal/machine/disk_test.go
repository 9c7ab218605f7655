package machine

import (
	"context"
	"errors"
	"io"
	"testing"
)

func TestLateDisk(t *testing.T) {
	image, err := openFake(t.Context(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	size := image.Size()
	o := &opening{done: make(chan struct{})}
	d := &lateDisk{ready: make(chan struct{})}
	if _, _, ok := d.ReadFd(0, 512); ok || d.Size() <= size {
		t.Errorf("a disk of %d bytes that has something before there is an image", d.Size())
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.ReadAt(cancelled, make([]byte, 512), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("a read before there is an image: %v", err)
	}
	read := make(chan error)
	go func() {
		_, err := d.ReadAt(t.Context(), make([]byte, 512), 0)
		read <- err
	}()
	o.image = image
	close(o.done)
	if err := d.open(t.Context(), o, func(i Image) Image { return i }); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil {
		t.Errorf("the read that waited: %v", err)
	}
	for name, tt := range map[string]struct {
		off int64
		n   int
		err error
	}{
		"the end":          {size - 512, 512, nil},
		"across the end":   {size - 512, 1024, errBehindImage},
		"behind the end":   {size, 512, errBehindImage},
		"the disk's end":   {lateSize - 512, 512, errBehindImage},
		"nothing, the end": {size, 0, nil},
	} {
		if _, err := d.ReadAt(t.Context(), make([]byte, tt.n), tt.off); err != tt.err {
			t.Errorf("%s: %v, want %v", name, err, tt.err)
		}
	}
}

func TestLateDiskFails(t *testing.T) {
	d := &lateDisk{ready: make(chan struct{})}
	o := &opening{done: make(chan struct{}), err: io.ErrUnexpectedEOF}
	close(o.done)
	if err := d.open(t.Context(), o, nil); err != io.ErrUnexpectedEOF {
		t.Errorf("open() = %v", err)
	}
}
