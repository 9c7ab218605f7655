package main

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// markdown is the document for people: first what was wanted and came of it, then all that was measured.
func (d *document) markdown() []byte {
	var b bytes.Buffer
	images := make([]string, 0, len(d.Images))
	for _, name := range slices.Sorted(maps.Keys(d.Images)) {
		images = append(images, name+": "+d.Images[name])
	}
	fmt.Fprintf(&b, "# What `make bench` measured\n\n%s. %s.\n\n%s.\n\nImages: %s.\n\nLoad average at the beginning: %s. ", d.Date.Format(time.DateOnly),
		strings.Join(sortedPairs(d.Machine), "; "), strings.Join(sortedPairs(d.Versions), "; "), strings.Join(images, "; "), d.Load)
	b.WriteString("A row is IMAGE/WHAT@LINK. Numbers are medians, with the least and the most. Ratios are of runs of the same round, one after the other on the same machine.\n\n")
	b.WriteString("## Goals\n\n| row | ratio or figure | median (least–most) | goal, at most | |\n| --- | --- | --- | --- | --- |\n")
	for _, r := range d.Rows {
		for _, q := range r.Ratios {
			if q.Goal != nil {
				fmt.Fprintf(&b, "| %s | %s | %s | %.3g | %s |\n", r.Name, q.What, q.Value, *q.Goal, q.verdict())
			}
		}
	}
	b.WriteString("\n## All\n")
	for _, r := range d.Rows {
		r.markdown(&b)
	}
	return b.Bytes()
}

func (res *result) markdown(b *bytes.Buffer) {
	fmt.Fprintf(b, "\n### %s\n\n", res.Name)
	if res.LeftOut != "" {
		fmt.Fprintf(b, "Left out: %s.\n\n", res.LeftOut)
	}
	b.WriteString("| way | runs | seconds | CPU s | received MB | requests | disk MB | files | peak anonymous MB | parts, seconds |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, w := range res.Ways {
		if w.Runs == 0 {
			if len(w.Errors) > 0 {
				fmt.Fprintf(b, "| %s | 0 | failed | | | | | | | |\n", w.Way)
			}
			continue
		}
		var memory, parts []string
		for _, k := range slices.Sorted(maps.Keys(w.Memory)) {
			memory = append(memory, fmt.Sprintf("%s %.0f", k, float64(w.Memory[k])/1e6))
		}
		for _, k := range slices.Sorted(maps.Keys(w.Phases)) {
			parts = append(parts, fmt.Sprintf("%s %.2f", k, w.Phases[k].Median))
		}
		fmt.Fprintf(b, "| %s | %d | %s | %.2f | %.1f | %d | %.1f | %d | %s | %s |\n", w.Way, w.Runs, w.Seconds, w.CPU, float64(w.Received)/1e6, w.Requests,
			float64(w.Disk)/1e6, w.Files, strings.Join(memory, ", "), strings.Join(parts, ", "))
	}
	b.WriteString("\n")
	for _, q := range res.Ratios {
		if q.Goal == nil {
			fmt.Fprintf(b, "- %s: %s\n", q.What, q.Value)
		}
	}
}

func (s spread) String() string { return fmt.Sprintf("%.3g (%.3g–%.3g)", s.Median, s.Min, s.Max) }

func (q ratioResult) verdict() string {
	if q.Met {
		return "met"
	}
	return "missed"
}
