package daemon

import (
	"errors"
	"net/http/httptest"
	"testing"
)

// TestLinesEnd tells somebody whose request is over.
func TestLinesEnd(t *testing.T) {
	w := httptest.NewRecorder()
	l := newLines(w)
	if err := l.send(Message{}); err != nil {
		t.Fatal(err)
	}
	l.end()
	n := w.Body.Len()
	if err := l.send(Message{}); !errors.Is(err, errEnded) || w.Body.Len() != n {
		t.Errorf("%d bytes were written after the end, %v", w.Body.Len()-n, err)
	}
}
