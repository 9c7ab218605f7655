package registry

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// maxPause is the longest that a server is left alone, whatever it asks for.
const maxPause = time.Hour

// pauses are the servers that asked to be left alone for a while (status 429 or 503 with Retry-After: RFC 9110, section 10.2.3), by host and
// port. Until that is over every request to one fails at once with a pauseError. Then one goes, and all others wait for what becomes of
// it: so a server that is overloaded is never met by all that have waited. The zero value is ready.
type pauses struct {
	mu sync.Mutex // guards m and what it holds
	m  map[string]*pause
}

type pause struct {
	begun, until time.Time
	scout        chan struct{} // closed when the request that goes first has been answered; nil: none is under way
}

// pauseError is a request that wasn't sent.
type pauseError struct {
	host         string
	begun, until time.Time
}

func (e *pauseError) Error() string {
	return fmt.Sprintf("%s asked at %s to be left alone until %s", e.host, e.begun.Format(time.TimeOnly), e.until.Format(time.TimeOnly))
}

func (e *pauseError) Temporary() bool           { return true }
func (e *pauseError) RetryAfter() time.Duration { return max(time.Until(e.until), 0) }

// pass waits until a request may be sent to host. The caller calls answered with what came of it.
func (p *pauses) pass(ctx context.Context, host string) (answered func(*http.Response), _ error) {
	for {
		p.mu.Lock()
		h := p.m[host]
		if h == nil {
			p.mu.Unlock()
			return func(resp *http.Response) { p.note(host, resp) }, nil
		}
		if time.Now().Before(h.until) {
			e := &pauseError{host, h.begun, h.until}
			p.mu.Unlock()
			return nil, e
		}
		scout := h.scout
		if scout == nil {
			h.scout = make(chan struct{})
			p.mu.Unlock()
			return func(resp *http.Response) { p.scouted(host, h, resp) }, nil
		}
		p.mu.Unlock()
		select {
		case <-scout:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// note begins a pause if an answer asks for one.
func (p *pauses) note(host string, resp *http.Response) {
	if resp == nil || resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return
	}
	asked := min(retryAfter(resp.Header), maxPause)
	if asked <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if h := p.m[host]; h != nil && h.until.After(now.Add(asked)) {
		return
	}
	if p.m == nil {
		p.m = make(map[string]*pause)
	}
	p.m[host] = &pause{begun: now, until: now.Add(asked)}
}

// scouted ends a pause after the first answer, unless that asks for another.
func (p *pauses) scouted(host string, h *pause, resp *http.Response) {
	p.mu.Lock()
	if p.m[host] == h {
		delete(p.m, host)
	}
	p.mu.Unlock()
	p.note(host, resp)
	close(h.scout)
}
