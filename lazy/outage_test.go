package lazy

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/store"
)

// passing is an error that may pass.
type passing struct{}

func (passing) Error() string   { return "it is down" }
func (passing) Temporary() bool { return true }

// TestOutage has a registry fail while an image is filled.
func TestOutage(t *testing.T) {
	refused := errors.New("access denied")
	for _, tt := range []struct {
		name    string
		err     error
		gone    time.Duration
		fetches int64 // at most, while it fails
		wantErr error
		mayPass bool
	}{
		{name: "for three hours", err: passing{}, gone: 3 * time.Hour, fetches: fillers * (6 + 3*60*2)},
		{name: "for a moment", err: passing{}, gone: time.Second, fetches: 2 * fillers},
		{name: "it refuses", err: refused, gone: time.Hour, fetches: fillers, wantErr: refused, mayPass: true},
		{name: "wrong bytes", err: fmt.Errorf("%w: here", blob.ErrDigestMismatch), gone: time.Hour, fetches: 2 * fillers, wantErr: blob.ErrDigestMismatch},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCache(t, filepath.Join(t.TempDir(), "c"))
				r, im := openPlaced(t, c, "a", "x", 0)
				begun := time.Now()
				var failed atomic.Int64
				r.begin(func(context.Context, int, int64, int64) error {
					if time.Since(begun) < tt.gone {
						failed.Add(1)
						return tt.err
					}
					return nil
				})
				filled := make(chan error)
				go func() { filled <- im.Fill(t.Context()) }()
				if tt.wantErr == nil && tt.gone > time.Minute {
					time.Sleep(tt.gone / 2)
					if !im.Filling() || !errors.Is(im.Err(), tt.err) {
						t.Errorf("meanwhile it fills: %v, error %v", im.Filling(), im.Err())
					}
				}
				err := <-filled
				if !errors.Is(err, tt.wantErr) || MayPass(err) != tt.mayPass {
					t.Errorf("error %v", err)
				}
				if n := failed.Load(); n == 0 || n > tt.fetches {
					t.Errorf("%d fetches while it failed, want at most %d", n, tt.fetches)
				}
				if tt.wantErr != nil {
					return
				}
				if late := time.Since(begun) - tt.gone; im.State() != store.Sealed || im.Err() != nil || late > 2*outageLast {
					t.Errorf("it is %s %v after the outage, error %v", im.State(), late, im.Err())
				}
			})
		})
	}
}
