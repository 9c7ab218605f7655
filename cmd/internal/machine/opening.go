package machine

import (
	"context"
	"encoding/json"
)

// opening is an image that is being opened, perhaps while its machine boots.
type opening struct {
	unwanted chan struct{} // closed by close
	done     chan struct{} // closed when what follows is set

	image Image
	err   error
	at    Instant // when it was done
}

// open opens the image that comes out of named.
func open(ctx context.Context, openImage OpenImage, named <-chan json.RawMessage) *opening {
	o := &opening{unwanted: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(o.done)
		defer func() { o.at = Now() }()
		select {
		case text := <-named:
			o.image, o.err = openImage(ctx, text)
		case <-ctx.Done():
			o.err = context.Cause(ctx)
		case <-o.unwanted:
			o.err = context.Canceled
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

// close closes the image, when the machine has ended.
func (o *opening) close() {
	close(o.unwanted)
	<-o.done
	if o.image != nil {
		_ = o.image.Close() // it was only read
	}
}
