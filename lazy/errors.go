package lazy

import "errors"

var (
	// ErrAmbiguous is wrapped where an image has what tools that unpack images disagree on, and the opening was to be strict.
	ErrAmbiguous = errors.New("the image is ambiguous")
	// ErrRefused is wrapped where a layer's table of contents was found to differ from the layer.
	ErrRefused = errors.New("the image is refused")
	// ErrBusy is wrapped where an image is being filled and must not be.
	ErrBusy = errors.New("the image is being filled")
	// ErrOffline is wrapped where something would have to be fetched and nothing may be.
	ErrOffline = errors.New("nothing is fetched offline")
	// ErrUnknownTag is wrapped where the cache doesn't know what a tag is and nobody may be asked.
	ErrUnknownTag = errors.New("the cache doesn't know this tag, and no registry is to be asked for it")
	// ErrReopened says that damage was found in an image that was sealed: what was opened before is to be asked for again.
	ErrReopened = errors.New("the image was opened anew")
)
