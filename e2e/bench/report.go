package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"
)

// spread is the middle of what several runs took, and its bounds.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf(v []float64) spread {
	if len(v) == 0 {
		return spread{}
	}
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return spread{(v[(n-1)/2] + v[n/2]) / 2, v[0], v[n-1]}
}

// result is a row's.
type result struct {
	Name    string        `json:"name"`
	Link    string        `json:"link"`
	Ways    []wayResult   `json:"ways"`
	Ratios  []ratioResult `json:"ratios"`
	LeftOut string        `json:"leftOut,omitempty"` // why not all was measured
}

// wayResult is what a way took. Numbers but Seconds are medians; Memory is the highest.
type wayResult struct {
	Way      string            `json:"way"`
	Runs     int               `json:"runs"`
	Seconds  spread            `json:"seconds"`
	Received int64             `json:"receivedBytes"`
	Requests int64             `json:"requests"`
	CPU      float64           `json:"cpuSeconds"`
	Memory   map[string]int64  `json:"peakAnonymousBytes,omitempty"`
	Disk     int64             `json:"diskBytes,omitempty"`
	Files    int64             `json:"files,omitempty"`
	Phases   map[string]spread `json:"phases,omitempty"`
	Errors   []string          `json:"errors,omitempty"`
	Samples  []*sample         `json:"samples"`
}

// ratioResult is a ratio or a figure, and whether it is what is wanted.
type ratioResult struct {
	What  string   `json:"what"`
	Value spread   `json:"value"`
	Goal  *float64 `json:"goal,omitempty"` // at most
	Met   bool     `json:"met,omitempty"`
}

// runRow measures a row: rounds in which each way runs once, and a different one first each time.
func (b *bench) runRow(ctx context.Context, r *row) *result {
	fmt.Printf("\n%s\n", r.name)
	res := &result{Name: r.name, Link: r.link.name}
	end, _ := ctx.Deadline()
	runs := max(b.runs, r.runs)
	samples := make([][]*sample, len(r.ways)) // by way and round; nil where a run failed
	failed := make([][]string, len(r.ways))
	err := func() error {
		if ctx.Err() != nil {
			return why(ctx)
		}
		l, err := b.link(r.link)
		if err != nil {
			return err
		}
		if r.once != nil {
			defer b.clean()
			if err := r.once(ctx, l); err != nil {
				return err
			}
		}
		for i, w := range r.ways {
			if w.before != nil {
				if err := w.before(ctx); err != nil {
					failed[i] = append(failed[i], err.Error())
				}
			}
		}
		var longest time.Duration // of a round
		for round := range runs {
			if time.Until(end) < longest {
				return fmt.Errorf("%w after %d of %d rounds", errOver, round, runs)
			}
			t := time.Now()
			for i := range r.ways {
				n := (i + round) % len(r.ways)
				one, cancel := context.WithTimeout(ctx, longestRun)
				s, err := r.ways[n].run(one, l)
				cancel()
				if r.once == nil {
					err = errors.Join(err, b.clean())
				}
				if ctx.Err() != nil {
					return fmt.Errorf("%w after %d of %d rounds", why(ctx), round, runs)
				}
				if err != nil {
					failed[n] = append(failed[n], err.Error())
					s = nil
				}
				samples[n] = append(samples[n], s)
			}
			longest = max(longest, time.Since(t))
		}
		return nil
	}()
	if err != nil {
		res.LeftOut = err.Error()
	}
	for i, w := range r.ways {
		res.Ways = append(res.Ways, summarise(w.name, samples[i], failed[i]))
	}
	res.compare(r, samples)
	res.print(os.Stdout)
	return res
}

// longestRun is after what time a run is given up, for it hangs.
const longestRun = 5 * time.Minute

// errOver says that something was left out for want of time.
var errOver = errors.New("time was over")

var errInterrupted = errors.New("interrupted")

// why says why ctx has ended.
func why(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errOver
	}
	return errInterrupted
}

func summarise(name string, samples []*sample, failed []string) wayResult {
	w := wayResult{Way: name, Memory: map[string]int64{}, Phases: map[string]spread{}, Errors: slices.Compact(failed), Samples: []*sample{}}
	var seconds, cpu []float64
	var received, requests, disk, files []float64
	phases := map[string][]float64{}
	for _, s := range samples {
		if s == nil {
			continue
		}
		w.Runs++
		w.Samples = append(w.Samples, s)
		seconds, cpu = append(seconds, s.Seconds), append(cpu, s.CPU)
		received, requests = append(received, float64(s.Received)), append(requests, float64(s.Requests))
		disk, files = append(disk, float64(s.Disk)), append(files, float64(s.Files))
		for k, v := range s.Memory {
			w.Memory[k] = max(w.Memory[k], v)
		}
		for k, v := range s.Phases {
			phases[k] = append(phases[k], v)
		}
	}
	w.Seconds, w.CPU = spreadOf(seconds), spreadOf(cpu).Median
	w.Received, w.Requests = int64(spreadOf(received).Median), int64(spreadOf(requests).Median)
	w.Disk, w.Files = int64(spreadOf(disk).Median), int64(spreadOf(files).Median)
	for k, v := range phases {
		w.Phases[k] = spreadOf(v)
	}
	return w
}

func (s *sample) part(phase string) (float64, bool) {
	if phase == "" {
		return s.Seconds, true
	}
	v, ok := s.Phases[phase]
	return v, ok
}

// compare works out the row's ratios, round by round, and its figures.
func (res *result) compare(r *row, samples [][]*sample) {
	find := func(name string) []*sample {
		for i, w := range r.ways {
			if w.name == name {
				return samples[i]
			}
		}
		return nil
	}
	label := func(way, phase string) string {
		if phase != "" {
			return way + " (" + phase + ")"
		}
		return way
	}
	for _, q := range r.ratios {
		var v []float64
		of, by := find(q.of), find(q.by)
		for i := range min(len(of), len(by)) {
			if of[i] == nil || by[i] == nil {
				continue
			}
			a, ok := of[i].part(q.ofPhase)
			b, ok2 := by[i].part(q.byPhase)
			if ok && ok2 && b > 0 {
				v = append(v, a/b)
			}
		}
		if len(v) > 0 {
			res.Ratios = append(res.Ratios, judged(label(q.of, q.ofPhase)+" / "+label(q.by, q.byPhase), v, q.goal, q.goal > 0))
		}
	}
	for i, w := range r.ways {
		figures := map[string][]float64{}
		for _, s := range samples[i] {
			if s != nil {
				for k, v := range s.Figures {
					figures[k] = append(figures[k], v)
				}
			}
		}
		for _, k := range slices.Sorted(maps.Keys(figures)) {
			goal, ok := r.goals[k]
			res.Ratios = append(res.Ratios, judged(w.name+": "+k, figures[k], goal, ok))
		}
	}
}

func judged(what string, v []float64, goal float64, has bool) ratioResult {
	r := ratioResult{What: what, Value: spreadOf(v)}
	if has {
		r.Goal, r.Met = &goal, r.Value.Median <= goal
	}
	return r
}

func (res *result) print(w io.Writer) {
	fmt.Fprintf(w, "  %-28s %4s %8s %15s %8s %9s %8s %9s %7s  %s\n", "way", "runs", "seconds", "min–max", "CPU s", "received", "requests", "disk", "files", "peak anonymous MB")
	for _, x := range res.Ways {
		if x.Runs == 0 && len(x.Errors) == 0 {
			continue
		}
		var memory []string
		for _, k := range slices.Sorted(maps.Keys(x.Memory)) {
			memory = append(memory, fmt.Sprintf("%s %.0f", k, float64(x.Memory[k])/1e6))
		}
		fmt.Fprintf(w, "  %-28s %4d %8.2f %15s %8.2f %6.1f MB %8d %6.1f MB %7d  %s\n", x.Way, x.Runs, x.Seconds.Median, fmt.Sprintf("%.2f–%.2f", x.Seconds.Min, x.Seconds.Max),
			x.CPU, float64(x.Received)/1e6, x.Requests, float64(x.Disk)/1e6, x.Files, strings.Join(memory, ", "))
		for _, e := range x.Errors {
			fmt.Fprintf(w, "    failed: %.1500s\n", e)
		}
	}
	for _, x := range res.Ways {
		var parts []string
		for _, k := range slices.Sorted(maps.Keys(x.Phases)) {
			parts = append(parts, fmt.Sprintf("%s %.3f", k, x.Phases[k].Median))
		}
		if len(parts) > 0 {
			fmt.Fprintf(w, "  of %s: %s\n", x.Way, strings.Join(parts, ", "))
		}
	}
	for _, q := range res.Ratios {
		fmt.Fprintf(w, "  %s\n", q)
	}
	if res.LeftOut != "" {
		fmt.Fprintf(w, "  left out: %s\n", res.LeftOut)
	}
}

func (q ratioResult) String() string {
	s := fmt.Sprintf("%s: %s", q.What, q.Value)
	if q.Goal == nil {
		return s
	}
	return fmt.Sprintf("%s; goal %.3g: %s", s, *q.Goal, q.verdict())
}

// document is all that was measured, and on what.
type document struct {
	Date     time.Time         `json:"date"`
	Machine  map[string]string `json:"machine"`
	Versions map[string]string `json:"versions"`
	Load     string            `json:"loadAverage"` // before the first row
	Images   map[string]string `json:"images"`
	Rows     []*result         `json:"rows"`
}

// add adds a row, or puts it in the place of an older one.
func (d *document) add(r *result) {
	if i := slices.IndexFunc(d.Rows, func(o *result) bool { return o.Name == r.Name }); i >= 0 {
		d.Rows[i] = r
		return
	}
	d.Rows = append(d.Rows, r)
}

// read takes rows and images from an older document, if there is one.
func (d *document) read(file string) error {
	var old document
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(b, &old)
	}
	if err != nil {
		return fmt.Errorf("reading what was measured before: %w", err)
	}
	d.Rows = old.Rows
	maps.Copy(d.Images, old.Images)
	return nil
}

// write writes the document as JSON, and as Markdown if tables names a file.
func (d *document) write(file, tables string) error {
	out, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file, append(out, '\n'), 0o644); err != nil || tables == "" {
		return err
	}
	return os.WriteFile(tables, d.markdown(), 0o644)
}

// printSummary prints what was wanted and came of it, and what was left out.
func (d *document) printSummary(w io.Writer) {
	fmt.Fprintf(w, "\n%s, %s\n", d.Date.Format(time.DateTime), strings.Join(sortedPairs(d.Machine), "; "))
	fmt.Fprintf(w, "%s\nload average at the beginning: %s\n\n", strings.Join(sortedPairs(d.Versions), "; "), d.Load)
	for _, r := range d.Rows {
		for _, q := range r.Ratios {
			if q.Goal != nil {
				fmt.Fprintf(w, "%-40s %s\n", r.Name, q)
			}
		}
	}
	for _, r := range d.Rows {
		if r.LeftOut != "" {
			fmt.Fprintf(w, "left out of %s: %s\n", r.Name, r.LeftOut)
		}
		for _, x := range r.Ways {
			if x.Runs == 0 && len(x.Errors) > 0 {
				fmt.Fprintf(w, "left out of %s: %s failed\n", r.Name, x.Way)
			}
		}
	}
}

func sortedPairs(m map[string]string) []string {
	var s []string
	for k, v := range m {
		s = append(s, k+" "+v)
	}
	sort.Strings(s)
	return s
}
