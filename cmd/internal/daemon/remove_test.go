package daemon

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/pexfs/pex/lazy/store"
)

// TestRemoveAgain has daemons end while they remove an image: it is gone where the next one hasn't got it, but not where none had begun.
func TestRemoveAgain(t *testing.T) {
	var ends, asked atomic.Int64
	c := answering(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodDelete {
			io.WriteString(w, `{"pid":7,"api":1}`)
			return
		}
		if asked.Add(1) <= ends.Load() {
			panic(http.ErrAbortHandler)
		}
		fail(w, store.ErrNotCached)
	})
	c.ensures = true
	for _, q := range []struct {
		name string
		ends int64
		code string // of the error; "": none
	}{
		{"none ends", 0, CodeNotCached},
		{"one ends", 1, ""},
		{"two end", 2, ""},
	} {
		t.Run(q.name, func(t *testing.T) {
			ends.Store(q.ends)
			asked.Store(0)
			err := c.Remove(t.Context(), "abc")
			var e *Error
			if errors.As(err, &e) != (q.code != "") || e != nil && e.Code != q.code || err != nil && e == nil {
				t.Errorf("%v, want %q", err, q.code)
			}
			if asked.Load() != q.ends+1 {
				t.Errorf("asked %d times", asked.Load())
			}
		})
	}
}
