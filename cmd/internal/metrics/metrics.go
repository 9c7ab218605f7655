// Package metrics counts what a daemon does: for Prometheus, and for each image what was waited for and why.
//
// Nothing that it keeps grows with time or with what others send: registries are named in labels only if an image was opened from them,
// and MaxRegistries of them; of an image the places that were waited for longest are kept, and the slowest hosts. Labels hold no names
// of images, no paths and no queries. All methods may be called concurrently.
package metrics

import (
	"net/http"
	"runtime"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/pexfs/pex/lazy/blob"
)

// MaxRegistries is how many registries have labels of their own.
const MaxRegistries = 32

// What stands for a registry in labels where there is no image's registry to name.
const (
	Other  = "other" // hosts that a registry redirects to, mirrors, token servers, and registries beyond MaxRegistries
	Folder = "oci"   // an OCI layout
)

// Metrics of one daemon.
type Metrics struct {
	registry *prometheus.Registry

	fetched  *prometheus.CounterVec
	requests *prometheus.CounterVec
	retries  *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	waits    prometheus.Histogram
	failed   *prometheus.CounterVec
	refused  prometheus.Counter
	uncached prometheus.Counter

	mu      sync.Mutex // guards what follows, and all tallies
	hosts   map[string]bool
	tallies map[string]*tally // by image
}

// State is what a daemon has at a moment.
type State struct {
	Images      map[string]int // by state
	Present     int64          // bytes of them that are there
	Leases      int
	Openings    int
	CacheBytes  int64 // allocated on disk; -1: not known
	BudgetBytes int64 // that the cache may take; 0: no limit
	Evicted     int64 // images, since the daemon started
}

// New makes the metrics of a daemon of some version; state is asked at each scrape.
func New(version string, state func() State) *Metrics {
	// from a loopback's answer to what a read waits before it fails
	wait := []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		fetched: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pexfs_fetched_bytes_total", Help: "Bytes received from registries and OCI layouts, as they are stored there, by what they were fetched for."}, []string{"registry", "reason"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pexfs_registry_requests_total", Help: "Requests to registries by class of the answer's status; error: there was no answer, canceled: nobody wanted it any more."}, []string{"registry", "status"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pexfs_registry_retries_total", Help: "Tries after one that failed."}, []string{"registry"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pexfs_registry_request_duration_seconds", Help: "Time until the header of an answer from a registry.", Buckets: wait}, []string{"registry"}),
		waits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "pexfs_read_wait_seconds", Help: "Time that reads of what was missing waited, whatever became of them.", Buckets: wait}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pexfs_reads_failed_total", Help: "Reads of what was missing that failed; canceled: the reader gave up."}, []string{"why"}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pexfs_connections_refused_total", Help: "Connections to the daemon's socket that were refused for their user."}),
		uncached: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pexfs_uncached_reads_total", Help: "Reads of what was missing that were answered from memory, since the cache could not be written."}),
		hosts: make(map[string]bool), tallies: make(map[string]*tally),
	}
	for _, why := range []string{failedError, failedCanceled} { // they are there before the first happens
		m.failed.WithLabelValues(why)
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "pexfs_build_info", Help: "1; its labels say what runs.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()}})
	info.Set(1)
	m.registry.MustRegister(m.fetched, m.requests, m.retries, m.latency, m.waits, m.failed, m.refused, m.uncached, info, stateCollector(state),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler answers a scrape.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Registry says that an image is opened from a registry, which may be named in labels then.
func (m *Metrics) Registry(host string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.hosts) < MaxRegistries {
		m.hosts[host] = true
	}
}

// label is what stands for a host.
func (m *Metrics) label(host string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hosts[host] {
		return host
	}
	return Other
}

// Refused counts a connection that was refused for its user.
func (m *Metrics) Refused() { m.refused.Inc() }

// Uncached counts a read that was answered from memory.
func (m *Metrics) Uncached() { m.uncached.Inc() }

// reason is the label for a purpose.
func reason(p blob.Purpose) string {
	if p.Reason == "" {
		return Other
	}
	return string(p.Reason)
}

// stateCollector gives a daemon's state at each scrape.
type stateCollector func() State

func (stateCollector) desc() (images, present, leases, openings, cache, budget, evicted *prometheus.Desc) {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return d("pexfs_images", "Images of the cache by state.", "state"),
		d("pexfs_present_bytes", "Bytes that are there of images that are complete or in use."),
		d("pexfs_leases", "Mounts, machines and others that hold an image in the cache."),
		d("pexfs_openings", "Images that are being opened."),
		d("pexfs_cache_bytes", "What the cache folder takes on disk."),
		d("pexfs_cache_budget_bytes", "What the cache folder may take on disk; 0: no limit."),
		d("pexfs_evictions_total", "Images that were removed from the cache to make room.")
}

// Describe implements prometheus.Collector.
func (c stateCollector) Describe(ch chan<- *prometheus.Desc) {
	a, b, d, e, f, g, h := c.desc()
	for _, x := range []*prometheus.Desc{a, b, d, e, f, g, h} {
		ch <- x
	}
}

// Collect implements prometheus.Collector.
func (c stateCollector) Collect(ch chan<- prometheus.Metric) {
	images, present, leases, openings, cache, budget, evicted := c.desc()
	s := c()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for state, n := range s.Images {
		gauge(images, float64(n), state)
	}
	gauge(present, float64(s.Present))
	gauge(leases, float64(s.Leases))
	gauge(openings, float64(s.Openings))
	if s.CacheBytes >= 0 {
		gauge(cache, float64(s.CacheBytes))
	}
	gauge(budget, float64(s.BudgetBytes))
	ch <- prometheus.MustNewConstMetric(evicted, prometheus.CounterValue, float64(s.Evicted))
}
