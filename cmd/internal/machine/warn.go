package machine

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"unicode"
)

// maxWarnings bounds the warnings of one machine: what a guest does can provoke any
// number of them.
const maxWarnings = 10

// warner is a slog.Handler that tells the attached process of warnings and errors.
type warner struct {
	say   func(Event)
	attrs []slog.Attr

	mu   *sync.Mutex     // over said
	said map[string]bool // shared by all that WithAttrs makes
}

func newWarner(say func(Event)) *warner {
	return &warner{say: say, mu: new(sync.Mutex), said: make(map[string]bool)}
}

// Enabled is for warnings and what is worse.
func (w *warner) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

// Handle says a message and its error, each once.
func (w *warner) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	add := func(a slog.Attr) bool {
		if a.Key == "err" || a.Key == "error" {
			text += ": " + a.Value.String()
		}
		return true
	}
	for _, a := range w.attrs {
		add(a)
	}
	r.Attrs(add)
	// A registry's words may be among them.
	text = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
	w.mu.Lock()
	fresh := !w.said[text] && len(w.said) < maxWarnings
	if fresh {
		w.said[text] = true
	}
	w.mu.Unlock()
	if fresh {
		w.say(Event{Warning: text})
	}
	return nil
}

// WithAttrs is part of slog.Handler.
func (w *warner) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *w
	c.attrs = append(c.attrs[:len(c.attrs):len(c.attrs)], attrs...)
	return &c
}

// WithGroup is part of slog.Handler. Groups don't show.
func (w *warner) WithGroup(string) slog.Handler { return w }
