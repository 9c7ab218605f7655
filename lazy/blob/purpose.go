package blob

import (
	"context"
	"sync/atomic"
)

// Reason says what bytes are fetched for.
type Reason string

// The reasons there are. The zero value is not known.
const (
	ForOpening Reason = "open"    // manifests, tables of contents, layers that are read whole
	ForReader  Reason = "reader"  // somebody waits, with what lies behind it in the layer
	ForFiller  Reason = "filler"  // completing an image in the background
	ForProfile Reason = "profile" // what a profile names
	ForRepair  Reason = "repair"  // what a check found to be damaged
)

// Purpose goes along with the context of a fetch, for who counts what is fetched. It changes nothing else.
type Purpose struct {
	Reason Reason
	Image  string // what the bytes are of; empty where it isn't known
}

type purposeKey struct{}

// WithPurpose is ctx with a purpose instead of the one it has.
func WithPurpose(ctx context.Context, p Purpose) context.Context {
	return context.WithValue(ctx, purposeKey{}, p)
}

// PurposeOf is the purpose of ctx; the zero value where nobody has named one.
func PurposeOf(ctx context.Context) Purpose {
	p, _ := ctx.Value(purposeKey{}).(Purpose)
	return p
}

type againKey struct{}

// again is ctx for a try after one that failed.
func again(ctx context.Context) context.Context {
	return context.WithValue(ctx, againKey{}, new(atomic.Bool))
}

// Again tells, once for each, whether ctx is that of a try after one that failed: of the requests that such a try may take, the first
// is told so.
func Again(ctx context.Context) bool {
	told, ok := ctx.Value(againKey{}).(*atomic.Bool)
	return ok && told.CompareAndSwap(false, true)
}
