package machine

import (
	"context"
	"encoding/json"
)

// opening is an image that is being opened, perhaps while its machine boots.
type opening struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when what follows is set

	image Image
	err   error
}

// open opens the image that comes out of named.
func open(ctx context.Context, openImage OpenImage, named <-chan json.RawMessage, warn func(string)) *opening {
	ctx, cancel := context.WithCancel(ctx)
	o := &opening{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		select {
		case text := <-named:
			o.image, o.err = openImage(ctx, text, warn)
		case <-ctx.Done():
			o.err = context.Cause(ctx)
		}
	}()
	return o
}

// wait waits for the image.
func (o *opening) wait(ctx context.Context) (Image, error) {
	select {
	case <-o.done:
		return o.image, o.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// close ends the opening and closes the image, when the machine has ended.
func (o *opening) close() {
	o.cancel()
	<-o.done
	if o.image != nil {
		_ = o.image.Close() // it was only read
	}
}
