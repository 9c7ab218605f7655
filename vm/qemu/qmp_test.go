package qemu

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/pexfs/pex/vm"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}` + "\r\n"

// deaf is a connection to somebody who doesn't listen.
type deaf struct{ net.Conn }

func (deaf) Write(p []byte) (int, error) { return len(p), nil }

// speak has a QEMU of the test say text and hang up.
func speak(text string) net.Conn {
	ours, theirs := net.Pipe()
	go func() {
		io.WriteString(theirs, text)
		theirs.Close()
	}()
	return deaf{ours}
}

func TestCause(t *testing.T) {
	const ok = `{"return": {}}` + "\r\n"
	event := func(reason string) string {
		return `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "` + reason + `"}}` + "\r\n"
	}
	tests := []struct {
		name, text string
		want       vm.Cause
	}{
		{"power-off", greeting + ok + event("guest-shutdown"), vm.PowerOff},
		{"reset", greeting + ok + event("guest-reset"), vm.Reset},
		{"panic", greeting + ok + event("guest-panic"), vm.Reset},
		{"other events", greeting + `{"event":"RESUME"}` + "\n" + ok + `{"event":"X"}` + "\n" + event("guest-shutdown"), vm.PowerOff},
		{"nothing said", greeting + ok, vm.Crashed},
		{"quit by the host", greeting + ok + event("host-qmp-quit"), vm.Crashed},
		{"garbage after", greeting + ok + "garbage\n" + event("guest-shutdown"), vm.Crashed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := openMonitor(t.Context(), speak(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if got := m.cause(time.Minute); got != tt.want {
				t.Errorf("cause = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestHandshakeFails(t *testing.T) {
	for name, text := range map[string]string{
		"end":           "",
		"end after":     greeting,
		"no greeting":   `{"return": {}}` + "\n",
		"no json":       "hello\n",
		"refused":       greeting + `{"error": {"class": "GenericError", "desc": "no"}}` + "\n",
		"too long line": `{"QMP": "` + strings.Repeat("x", maxMessage) + `"}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := speak(text)
			defer c.Close()
			if _, err := openMonitor(t.Context(), c); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestHandshakeEndsWithContext(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := openMonitor(ctx, ours); err == nil {
		t.Error("no error")
	}
}

func FuzzMonitor(f *testing.F) {
	f.Add([]byte(greeting + `{"return": {}}` + "\n" + `{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}` + "\n"))
	f.Add([]byte(greeting + `{"error": {"desc": 1}}`))
	f.Add([]byte(`{"QMP": null}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c := speak(string(bytes.TrimSpace(text)))
		defer c.Close()
		if m, err := openMonitor(t.Context(), c); err == nil {
			m.cause(time.Minute)
		}
	})
}
