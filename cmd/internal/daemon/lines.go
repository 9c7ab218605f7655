package daemon

import (
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"
)

// lines writes messages, each flushed. Work that several requests share goes on telling the one that began it, so it may outlive that one's
// handler: end it with the handler, and what comes afterwards is dropped.
type lines struct {
	mu    sync.Mutex
	w     http.ResponseWriter
	enc   *json.Encoder
	ended bool
}

// sendWait bounds how long a watcher who doesn't read may hold up the work.
const sendWait = 10 * time.Second

var errEnded = errors.New("the request is over")

func newLines(w http.ResponseWriter) *lines {
	w.Header().Set("Content-Type", "application/x-ndjson")
	return &lines{w: w, enc: json.NewEncoder(w)}
}

func (l *lines) send(m Message) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return errEnded
	}
	c := http.NewResponseController(l.w)
	_ = c.SetWriteDeadline(time.Now().Add(sendWait)) // without it a write may take longer, that is all
	err := errors.Join(l.enc.Encode(m), c.Flush())
	_ = c.SetWriteDeadline(time.Time{})
	l.ended = err != nil
	return err
}

// end is called before the handler returns.
func (l *lines) end() {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
}
