package metrics

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/pexfs/pex/lazy/blob"
)

// What is kept of images.
const (
	maxTallies = 1024 // images
	maxPlaces  = 256  // of an image
	maxHosts   = 16   // that an image's bytes came from

	maxHostName = 255 + len(":65535") // bytes
)

// Why is what an image's readers waited for since the daemon looks, and what was fetched of it.
type Why struct {
	Since    time.Time             `json:"since"`
	Reads    int64                 `json:"reads"`              // that had to wait: for what was missing
	Waiting  int64                 `json:"waiting"`            // of them, still
	Failed   int64                 `json:"failed"`             // of them; not those whose reader gave up
	Wanted   int64                 `json:"wantedBytes"`        // that they were for, each counted as often as it was waited for
	Waited   float64               `json:"waitedSeconds"`      // added up, though many may wait at once
	Longest  float64               `json:"longestSeconds"`     // the longest of these waits
	Fetched  map[blob.Reason]int64 `json:"fetchedBytes"`       // by reason, as they are stored in the registry
	Requests int64                 `json:"requests"`           // to registries
	Retries  int64                 `json:"retries"`            // of them
	Hosts    []Host                `json:"hosts"`              // that they went to, the slowest first
	Places   []Place               `json:"places"`             // the longest waited for first
	Dropped  float64               `json:"otherPlacesSeconds"` // waited for other places than these
}

// Host is a registry, or where it redirects to.
type Host struct {
	Name     string  `json:"name"`
	Requests int64   `json:"requests"`
	Bytes    int64   `json:"bytes"`
	Mean     float64 `json:"meanSeconds"` // until the header of an answer
	Longest  float64 `json:"longestSeconds"`

	total time.Duration
}

// Place is a content of an image that was waited for.
type Place struct {
	Off     int64   `json:"off"`  // in the image file
	Size    int64   `json:"size"` // bytes
	Reads   int64   `json:"reads"`
	Waiting int64   `json:"waiting"`
	Failed  int64   `json:"failed"`
	Waited  float64 `json:"waitedSeconds"`
	Longest float64 `json:"longestSeconds"`
}

// wait adds one that took so long.
func (p *Place) wait(took time.Duration, failed bool) {
	p.Waited += took.Seconds()
	p.Longest = max(p.Longest, took.Seconds())
	if failed {
		p.Failed++
	}
}

// tally is what is kept of an image. Metrics.mu guards it.
type tally struct {
	why     Why // without lists
	hosts   map[string]*Host
	places  map[int64]*Place
	waiting map[*Wait]bool
}

// of gives the tally of an image. m.mu is held.
func (m *Metrics) of(image string) *tally {
	t := m.tallies[image]
	if t != nil {
		return t
	}
	if len(m.tallies) >= maxTallies {
		oldest := ""
		for k, o := range m.tallies {
			if len(o.waiting) == 0 && (oldest == "" || o.why.Since.Before(m.tallies[oldest].why.Since)) {
				oldest = k
			}
		}
		delete(m.tallies, oldest)
	}
	t = &tally{why: Why{Since: time.Now(), Fetched: make(map[blob.Reason]int64)}, hosts: make(map[string]*Host), places: make(map[int64]*Place), waiting: make(map[*Wait]bool)}
	m.tallies[image] = t
	return t
}

// Became says that what was fetched for one name was for an image; both are as Purpose has them.
func (m *Metrics) Became(name, image string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	from := m.tallies[name]
	if from == nil || name == image {
		return
	}
	delete(m.tallies, name)
	to := m.tallies[image]
	if to == nil {
		m.tallies[image] = from
		return
	}
	for r, n := range from.why.Fetched {
		to.why.Fetched[r] += n
	}
	to.why.Requests += from.why.Requests
	to.why.Retries += from.why.Retries
	for name, h := range from.hosts {
		if o := to.host(name); o != nil {
			o.Requests, o.Bytes, o.total, o.Longest = o.Requests+h.Requests, o.Bytes+h.Bytes, o.total+h.total, max(o.Longest, h.Longest)
		}
	}
}

// Forget forgets an image that is removed, or an opening that came to nothing.
func (m *Metrics) Forget(image string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.tallies, image)
}

// host is where a host is counted, or nil: there are enough.
func (t *tally) host(name string) *Host {
	h := t.hosts[name]
	if h == nil && len(t.hosts) < maxHosts && len(name) <= maxHostName {
		h = &Host{Name: name}
		t.hosts[name] = h
	}
	return h
}

// asked counts a request.
func (m *Metrics) asked(image, host string, took time.Duration, again bool) {
	if image == "" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.of(image)
	t.why.Requests++
	if again {
		t.why.Retries++
	}
	if h := t.host(host); h != nil {
		h.Requests++
		h.total += took
		h.Longest = max(h.Longest, took.Seconds())
	}
}

// received counts bytes; host is empty for a folder.
func (m *Metrics) received(p blob.Purpose, host string, n int64) {
	if p.Image == "" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.of(p.Image)
	t.why.Fetched[p.Reason] += n
	if host == "" {
		return
	}
	if h := t.host(host); h != nil {
		h.Bytes += n
	}
}

// Wait is a read that waits.
type Wait struct {
	m       *Metrics
	t       *tally
	off, sz int64
	start   time.Time
}

// Wait begins a read of n bytes of an image that waits for the content of size bytes at off. Done ends it.
func (m *Metrics) Wait(image string, off, size, n int64) *Wait {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.of(image)
	w := &Wait{m, t, off, size, time.Now()}
	t.why.Reads++
	t.why.Wanted += n
	t.waiting[w] = true
	return w
}

// Why reads fail, in labels.
const (
	failedError    = "error"
	failedCanceled = "canceled"
)

// Done ends a wait, with the read's error.
func (w *Wait) Done(err error) {
	took := time.Since(w.start)
	w.m.waits.Observe(took.Seconds())
	failed := err != nil && !errors.Is(err, context.Canceled)
	switch {
	case failed:
		w.m.failed.WithLabelValues(failedError).Inc()
	case err != nil:
		w.m.failed.WithLabelValues(failedCanceled).Inc()
	}
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	t := w.t
	delete(t.waiting, w)
	if failed {
		t.why.Failed++
	}
	t.why.Waited += took.Seconds()
	t.why.Longest = max(t.why.Longest, took.Seconds())
	p := t.places[w.off]
	if p == nil {
		p = &Place{Off: w.off, Size: w.sz}
	}
	p.Reads++
	p.wait(took, failed)
	if t.places[w.off] == nil && !t.room(p.Waited) {
		t.why.Dropped += p.Waited
		return
	}
	t.places[w.off] = p
}

// room makes room for a place that was waited for so long, unless that is less than all others were.
func (t *tally) room(waited float64) bool {
	if len(t.places) < maxPlaces {
		return true
	}
	least := slices.MinFunc(slices.Collect(maps.Values(t.places)), func(a, b *Place) int { return cmp.Compare(a.Waited, b.Waited) })
	if least.Waited >= waited {
		return false
	}
	t.why.Dropped += least.Waited
	delete(t.places, least.Off)
	return true
}

// Why tells of an image; nothing of one that nothing was fetched of.
func (m *Metrics) Why(image string) Why {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tallies[image]
	if t == nil {
		return Why{Fetched: map[blob.Reason]int64{}, Hosts: []Host{}, Places: []Place{}}
	}
	w := t.why
	w.Fetched = maps.Clone(w.Fetched)
	w.Hosts = make([]Host, 0, len(t.hosts))
	for _, h := range t.hosts {
		o := *h
		if o.Requests > 0 {
			o.Mean = o.total.Seconds() / float64(o.Requests)
		}
		w.Hosts = append(w.Hosts, o)
	}
	slices.SortFunc(w.Hosts, func(a, b Host) int { return cmp.Or(cmp.Compare(b.Mean, a.Mean), cmp.Compare(a.Name, b.Name)) })
	places := make(map[int64]Place, len(t.places))
	for off, p := range t.places {
		places[off] = *p
	}
	for now := range t.waiting {
		p, ok := places[now.off]
		if !ok {
			p = Place{Off: now.off, Size: now.sz}
		}
		took := time.Since(now.start)
		p.Reads++
		p.Waiting++
		p.wait(took, false)
		places[now.off] = p
		w.Waiting++
		w.Waited += took.Seconds()
		w.Longest = max(w.Longest, took.Seconds())
	}
	w.Places = slices.AppendSeq(make([]Place, 0, len(places)), maps.Values(places))
	slices.SortFunc(w.Places, func(a, b Place) int { return cmp.Or(cmp.Compare(b.Waited, a.Waited), cmp.Compare(a.Off, b.Off)) })
	for _, p := range w.Places[min(len(w.Places), maxPlaces):] {
		w.Dropped += p.Waited
	}
	w.Places = w.Places[:min(len(w.Places), maxPlaces)]
	return w
}
