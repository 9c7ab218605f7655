package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/pexfs/pex/lazy/blob"
)

// Transport is base with its requests counted. Its method Unwrap gives base.
func (m *Metrics) Transport(base http.RoundTripper) http.RoundTripper { return &transport{m, base} }

type transport struct {
	m    *Metrics
	base http.RoundTripper
}

// Unwrap is the transport that carries the requests.
func (t *transport) Unwrap() http.RoundTripper { return t.base }

// Wrap is another transport, with its requests counted with those of this one.
func (t *transport) Wrap(base http.RoundTripper) http.RoundTripper { return &transport{t.m, base} }

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	again := blob.Again(ctx)
	start := time.Now()
	resp, err := t.base.RoundTrip(req)
	took := time.Since(start)

	m, host, p := t.m, req.URL.Host, blob.PurposeOf(ctx)
	label := m.label(host)
	m.requests.WithLabelValues(label, status(resp, err)).Inc()
	if err == nil {
		m.latency.WithLabelValues(label).Observe(took.Seconds())
	}
	if again {
		m.retries.WithLabelValues(label).Inc()
	}
	m.asked(p.Image, host, took, again)
	if err != nil {
		return nil, err
	}
	resp.Body = m.counted(resp.Body, label, host, p)
	return resp, nil
}

// status is the label for an answer.
func status(resp *http.Response, err error) string {
	switch {
	case err == nil && resp.StatusCode >= 100 && resp.StatusCode <= 599:
		return fmt.Sprintf("%dxx", resp.StatusCode/100)
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	return "error"
}

// Source is the source of a blob of an OCI layout with what it gives counted.
func (m *Metrics) Source(s blob.Source) blob.Source { return &source{s, m} }

type source struct {
	blob.Source
	m *Metrics
}

func (s *source) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	rc, err := s.Source.Fetch(ctx, off, n)
	if err != nil {
		return nil, err
	}
	return s.m.counted(rc, Folder, "", blob.PurposeOf(ctx)), nil
}

// counted is a body of which the bytes are counted.
func (m *Metrics) counted(rc io.ReadCloser, label, host string, p blob.Purpose) io.ReadCloser {
	return &body{rc, func(n int) {
		m.fetched.WithLabelValues(label, reason(p)).Add(float64(n))
		m.received(p, host, int64(n))
	}}
}

type body struct {
	io.ReadCloser
	count func(n int)
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.count(n)
	}
	return n, err
}
