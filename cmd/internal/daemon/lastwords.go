package daemon

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
)

// errEnding ends what is written once the daemon ends.
var errEnding = errors.New("the daemon ends")

// lastWords keeps what a request gets to the time before the daemon ends: after that, work fails that nothing is wrong with. Such an answer
// breaks off, and the client asks the next daemon. What was done and says no more than that is said.
type lastWords struct {
	http.ResponseWriter
	life    context.Context // the daemon's
	dropped atomic.Bool
}

func (l *lastWords) over() bool {
	if l.life.Err() != nil {
		l.dropped.Store(true)
	}
	return l.dropped.Load()
}

func (l *lastWords) WriteHeader(status int) {
	if status < http.StatusBadRequest || !l.over() {
		l.ResponseWriter.WriteHeader(status)
	}
}

func (l *lastWords) Write(b []byte) (int, error) {
	if l.over() {
		return 0, errEnding
	}
	return l.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (l *lastWords) Unwrap() http.ResponseWriter { return l.ResponseWriter }

// unlessEnding answers by h.
func (s *server) unlessEnding(h http.Handler, w http.ResponseWriter, r *http.Request) {
	l := &lastWords{ResponseWriter: w, life: s.ctx}
	h.ServeHTTP(l, r)
	if l.dropped.Load() {
		panic(http.ErrAbortHandler)
	}
}
