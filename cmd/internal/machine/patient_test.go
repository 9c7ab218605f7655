package machine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// slowImage answers reads by a function and has nothing present.
type slowImage struct {
	fakeImage
	read func(ctx context.Context) error
}

func (slowImage) ReadFd(int64, int) (uintptr, int64, bool) { return 0, 0, false }

func (s slowImage) ReadAt(ctx context.Context, p []byte, _ int64) (int, error) {
	if err := s.read(ctx); err != nil {
		return 0, err
	}
	return len(p), nil
}

func after(d time.Duration, err error) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d):
			return err
		}
	}
}

func TestPatient(t *testing.T) {
	const timeout = time.Minute
	failing := errors.New("registry gone")
	for _, tt := range []struct {
		name    string
		timeout time.Duration
		read    func() func(context.Context) error
		ended   string // part of the error that the machine ends with; empty: it goes on
		err     error  // of the read, if the machine goes on
		takes   time.Duration
	}{
		{"data at once", timeout, func() func(context.Context) error { return after(0, nil) }, "", nil, 0},
		{"data late", timeout, func() func(context.Context) error { return after(59*time.Second, nil) }, "", nil, 59 * time.Second},
		{"silence", timeout, func() func(context.Context) error { return after(time.Hour, nil) },
			"reading x: bytes 8192 to 12288 of the image are missing, and no data came for 1m0s", nil, timeout},
		{"silence without end", 0, func() func(context.Context) error { return after(24*time.Hour, nil) }, "", nil, 24 * time.Hour},
		{"failure without end", timeout, func() func(context.Context) error { return after(0, failing) },
			"and no data came for 1m0s: registry gone", nil, timeout},
		{"failure for a while", timeout, func() func(context.Context) error {
			n := 0
			return func(context.Context) error {
				if n++; n < 5 {
					return failing
				}
				return nil
			}
		}, "", nil, 1500 * time.Millisecond},
		{"wrong bytes", timeout, func() func(context.Context) error { return after(0, fmt.Errorf("layer: %w", ErrCorrupt)) }, "", ErrCorrupt, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, kill := context.WithCancelCause(t.Context())
				defer kill(nil)
				p := newPatient(slowImage{read: tt.read()}, "x", tt.timeout, kill, slog.New(slog.DiscardHandler))
				begin := time.Now()
				n, err := p.ReadAt(ctx, make([]byte, 4096), 8192)
				if took := time.Since(begin); took != tt.takes {
					t.Errorf("took %v, want %v", took, tt.takes)
				}
				if tt.ended == "" {
					if !errors.Is(err, tt.err) || err == nil && n != 4096 || ctx.Err() != nil {
						t.Errorf("ReadAt() = %d, %v, and the machine: %v", n, err, context.Cause(ctx))
					}
					return
				}
				var ended *EndedError
				if cause := context.Cause(ctx); err != cause || !errors.As(cause, &ended) || !strings.Contains(cause.Error(), tt.ended) || ended.Hint() == "" {
					t.Errorf("ReadAt() = %v, and the machine: %v; want %q", err, cause, tt.ended)
				}
			})
		})
	}
}

// As long as data comes for anyone, nobody gives up.
func TestPatientProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, kill := context.WithCancelCause(t.Context())
		defer kill(nil)
		image := slowImage{read: after(3*time.Minute, nil)}
		p := newPatient(image, "x", time.Minute, kill, slog.New(slog.DiscardHandler))
		done := make(chan error)
		go func() {
			_, err := p.ReadAt(ctx, make([]byte, 512), 0)
			done <- err
		}()
		for range 5 {
			time.Sleep(30 * time.Second)
			p.last.Store(int64(time.Since(p.begin))) // as another read does
		}
		if err := <-done; err != nil {
			t.Errorf("ReadAt() = %v", err)
		}
	})
}

// A reader that gives up ends nothing.
func TestPatientCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, kill := context.WithCancelCause(t.Context())
		defer kill(nil)
		rctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		p := newPatient(slowImage{read: after(time.Hour, nil)}, "x", time.Minute, kill, slog.New(slog.DiscardHandler))
		if _, err := p.ReadAt(rctx, make([]byte, 512), 0); !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			t.Errorf("ReadAt() = %v, and the machine: %v", err, context.Cause(ctx))
		}
	})
}
