package blob

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// silent is a source whose fetches take a while to open, and then to give each byte.
type silent struct {
	open, each time.Duration
	err        error
}

func (s silent) Size() int64 { return 100 }

func (s silent) Fetch(context.Context, int64, int64) (io.ReadCloser, error) {
	time.Sleep(s.open)
	if s.err != nil {
		return nil, s.err
	}
	return io.NopCloser(slowly{strings.NewReader("ab"), s.each}), nil
}

type slowly struct {
	io.Reader
	each time.Duration
}

func (s slowly) Read(p []byte) (int, error) {
	time.Sleep(s.each)
	return s.Reader.Read(p[:1])
}

// TestStalls tells of silences, in the time of a bubble.
func TestStalls(t *testing.T) {
	const sec = time.Second
	for _, tt := range []struct {
		name    string
		src     silent
		fetches int
		want    []Stall
	}{
		{name: "quick", src: silent{4 * sec, 4 * sec, nil}, fetches: 3},
		{name: "before the answer", src: silent{open: 50 * sec}, fetches: 1, want: []Stall{
			{"x", 7, 2, 5 * sec, 1, false}, {"x", 7, 2, 10 * sec, 1, false}, {"x", 7, 2, 20 * sec, 1, false}, {"x", 7, 2, 40 * sec, 1, false}, {"x", 7, 2, 50 * sec, 0, true}}},
		{name: "within", src: silent{sec, 7 * sec, nil}, fetches: 1, want: []Stall{
			{"x", 7, 2, 5 * sec, 1, false}, {"x", 7, 2, 7 * sec, 0, true}, {"x", 8, 1, 5 * sec, 1, false}, {"x", 8, 1, 7 * sec, 0, true}}},
		{name: "for ever", src: silent{open: 12 * sec, err: errors.New("gone")}, fetches: 1, want: []Stall{{"x", 7, 2, 5 * sec, 1, false}, {"x", 7, 2, 10 * sec, 1, false}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got []Stall
				s := NewStalls(func(st Stall) { got = append(got, st) })
				src := s.Watch(tt.src, func() string { return "x" })
				for range tt.fetches {
					rc, err := src.Fetch(t.Context(), 7, 2)
					if err == nil {
						b, err := io.ReadAll(rc)
						if string(b) != "ab" || err != nil {
							t.Errorf("%q, %v", b, err)
						}
					}
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Error(diff)
				}
				if len(s.m) != 0 {
					t.Errorf("%d silences are left", len(s.m))
				}
			})
		})
	}
}

// TestStallsTogether has many wait at one place: it is told of once each time.
func TestStallsTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var told []Stall
		s := NewStalls(func(st Stall) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, st)
		})
		src := s.Watch(silent{open: 12 * time.Second}, func() string { return "x" })
		done := make(chan error)
		for range 50 {
			go func() {
				rc, err := src.Fetch(t.Context(), 0, 2)
				if err == nil {
					_, err = io.ReadAll(rc)
				}
				done <- err
			}()
		}
		for range 50 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if len(told) != 3 || told[0].Over || told[1].Over || !told[2].Over || told[1].Fetches != 50 {
			t.Errorf("told %+v", told)
		}
	})
}
