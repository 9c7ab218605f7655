package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/pexfs/pex/lazy/blob"
)

func testMetrics() *Metrics {
	return New("v1", func() State {
		return State{Images: map[string]int{"lazy": 2, "sealed": 1}, Present: 4096, Leases: 3, Openings: 1, CacheBytes: 8192, BudgetBytes: 1 << 30, Evicted: 5}
	})
}

// scrape gives the lines of a scrape.
func scrape(t *testing.T, m *Metrics) map[string]bool {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	lines := make(map[string]bool)
	for line := range strings.Lines(w.Body.String()) {
		lines[strings.TrimSpace(line)] = true
	}
	return lines
}

// get fetches for a purpose as a registry's client does, after so many failures.
func get(t *testing.T, m *Metrics, p blob.Purpose, url string) {
	t.Helper()
	req, err := http.NewRequestWithContext(blob.WithPurpose(t.Context(), p), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: m.Transport(http.DefaultTransport)}).Do(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
}

func TestScrape(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, 500)) }))
	defer elsewhere.Close()
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/direct":
			w.Write(make([]byte, 1000))
		case "/moved":
			w.Header().Set("Location", elsewhere.URL+"/secret-path?signature=secret-query")
			w.WriteHeader(http.StatusTemporaryRedirect)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer registry.Close()
	m := testMetrics()
	host := strings.TrimPrefix(registry.URL, "http://")
	m.Registry(host)
	reader, filler := blob.Purpose{Reason: blob.ForReader, Image: "secret-image"}, blob.Purpose{Reason: blob.ForFiller, Image: "secret-image"}
	get(t, m, reader, registry.URL+"/direct")
	get(t, m, filler, registry.URL+"/direct")
	get(t, m, filler, registry.URL+"/moved")
	get(t, m, blob.Purpose{}, registry.URL+"/nothing")
	get(t, m, filler, "http://127.0.0.1:1/")
	m.Uncached()
	m.Uncached()
	m.Wait("secret-image", 4096, 100, 50).Done(nil)
	m.Wait("secret-image", 4096, 100, 50).Done(errors.New("no"))
	m.Wait("secret-image", 4096, 100, 50).Done(fmt.Errorf("gone: %w", context.Canceled))

	got := scrape(t, m)
	for _, line := range []string{
		`pexfs_fetched_bytes_total{reason="reader",registry="` + host + `"} 1000`,
		`pexfs_fetched_bytes_total{reason="filler",registry="other"} 500`,
		`pexfs_registry_requests_total{registry="` + host + `",status="2xx"} 2`,
		`pexfs_registry_requests_total{registry="` + host + `",status="3xx"} 1`,
		`pexfs_registry_requests_total{registry="` + host + `",status="4xx"} 1`,
		`pexfs_registry_requests_total{registry="other",status="2xx"} 1`,
		`pexfs_registry_requests_total{registry="other",status="error"} 1`,
		`pexfs_registry_request_duration_seconds_count{registry="` + host + `"} 4`,
		`pexfs_read_wait_seconds_count 3`,
		`pexfs_reads_failed_total{why="error"} 1`,
		`pexfs_reads_failed_total{why="canceled"} 1`,
		`pexfs_images{state="lazy"} 2`,
		`pexfs_present_bytes 4096`,
		`pexfs_leases 3`,
		`pexfs_openings 1`,
		`pexfs_cache_bytes 8192`,
		`pexfs_cache_budget_bytes 1.073741824e+09`,
		`pexfs_evictions_total 5`,
		`pexfs_uncached_reads_total 2`,
	} {
		if !got[line] {
			t.Errorf("there is no %s", line)
		}
	}
	for line := range got {
		if strings.Contains(line, "secret") {
			t.Errorf("%s", line)
		}
	}
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}

	why := m.Why("secret-image")
	want := Why{
		Reads: 3, Failed: 1, Wanted: 150, Fetched: map[blob.Reason]int64{blob.ForReader: 1000, blob.ForFiller: 1500}, Requests: 5,
		Hosts:  []Host{{Name: "127.0.0.1:1", Requests: 1}, {Name: host, Requests: 3, Bytes: 2000}, {Name: strings.TrimPrefix(elsewhere.URL, "http://"), Requests: 1, Bytes: 500}},
		Places: []Place{{Off: 4096, Size: 100, Reads: 3, Failed: 1}},
	}
	if d := cmp.Diff(want, why, cmpopts.IgnoreFields(Why{}, "Since", "Waited", "Longest"), cmpopts.IgnoreFields(Place{}, "Waited", "Longest"),
		cmpopts.IgnoreFields(Host{}, "Mean", "Longest"), cmpopts.IgnoreUnexported(Host{}), cmpopts.SortSlices(func(a, b Host) bool { return a.Bytes < b.Bytes })); d != "" {
		t.Error(d)
	}
}

// TestRetries fetches from a source that fails now and then.
func TestRetries(t *testing.T) {
	n := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n++; n%3 != 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer srv.Close()
	m := testMetrics()
	host := strings.TrimPrefix(srv.URL, "http://")
	m.Registry(host)
	client := &http.Client{Transport: m.Transport(http.DefaultTransport)}
	ctx := blob.WithPurpose(t.Context(), blob.Purpose{Image: "i"})
	for range 2 {
		err := blob.Policy{MinWait: time.Microsecond}.Do(ctx, func(ctx context.Context, _ func()) error {
			req, err := http.NewRequestWithContext(ctx, "GET", srv.URL, nil)
			if err != nil {
				return err
			}
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return io.ErrUnexpectedEOF
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if line := `pexfs_registry_retries_total{registry="` + host + `"} 4`; !scrape(t, m)[line] {
		t.Errorf("there is no %s", line)
	}
	if w := m.Why("i"); w.Requests != 6 || w.Retries != 4 {
		t.Errorf("%d requests, %d retries", w.Requests, w.Retries)
	}
}

// TestBounds names more registries, images, hosts and places than are kept.
func TestBounds(t *testing.T) {
	m := testMetrics()
	labels := make(map[string]bool)
	for i := range 10 * MaxRegistries {
		host := fmt.Sprintf("r%d.example", i)
		m.Registry(host)
		labels[m.label(host)] = true
	}
	if len(labels) != MaxRegistries+1 || !labels[Other] {
		t.Errorf("%d labels", len(labels))
	}
	for i := range 3 * maxPlaces {
		m.Wait("i", int64(i)*4096, 4096, 10).Done(nil)
	}
	for i := range 3 * maxHosts {
		m.asked("i", fmt.Sprintf("h%d.example", i), time.Second, false)
	}
	w := m.Why("i")
	sum := w.Dropped
	for _, p := range w.Places {
		sum += p.Waited
	}
	if len(w.Places) != maxPlaces || len(w.Hosts) != maxHosts || w.Reads != 3*maxPlaces || math.Abs(sum-w.Waited) > 1e-9 {
		t.Errorf("%d places, %d hosts, %d reads; %g s of %g s", len(w.Places), len(w.Hosts), w.Reads, sum, w.Waited)
	}
	waiting := m.Wait("waits", 0, 1, 1)
	for i := range 3 * maxTallies {
		m.asked(fmt.Sprint("image ", i), "h", 0, false)
	}
	if len(m.tallies) > maxTallies || m.Why("waits").Waiting != 1 {
		t.Errorf("%d images, %+v", len(m.tallies), m.Why("waits"))
	}
	waiting.Done(nil)
	m.Forget("waits")
	if w := m.Why("waits"); w.Reads != 0 {
		t.Errorf("what was forgotten has %d reads", w.Reads)
	}
}

// TestBecame opens an image twice: what that took is the image's.
func TestBecame(t *testing.T) {
	m := testMetrics()
	open := func(id string) {
		m.asked(id, "h", time.Second, true)
		m.received(blob.Purpose{Reason: blob.ForOpening, Image: id}, "h", 10)
		m.Became(id, "image")
	}
	open("opening 1")
	m.received(blob.Purpose{Reason: blob.ForFiller, Image: "image"}, "h", 5)
	open("opening 2")
	want := Why{Fetched: map[blob.Reason]int64{blob.ForOpening: 20, blob.ForFiller: 5}, Requests: 2, Retries: 2, Hosts: []Host{{Name: "h", Requests: 2, Bytes: 25, Mean: 1, Longest: 1}}, Places: []Place{}}
	if d := cmp.Diff(want, m.Why("image"), cmpopts.IgnoreFields(Why{}, "Since"), cmpopts.IgnoreUnexported(Host{})); d != "" {
		t.Error(d)
	}
	if len(m.tallies) != 1 {
		t.Errorf("%d images", len(m.tallies))
	}
}

var _ interface{ Unwrap() http.RoundTripper } = (*transport)(nil)
