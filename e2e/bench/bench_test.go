package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		name string
		v    []float64
		want spread
	}{
		{"none", nil, spread{}},
		{"one", []float64{3}, spread{3, 3, 3}},
		{"odd, unsorted", []float64{9, 1, 2}, spread{2, 1, 9}},
		{"even", []float64{4, 1, 3, 2}, spread{2.5, 1, 4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, spreadOf(c.v)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestCompare pairs the runs of a round, whatever failed of others.
func TestCompare(t *testing.T) {
	half := 0.5
	r := &row{
		ways: []way{{name: "ours"}, {name: "theirs"}},
		ratios: []ratio{
			{of: "ours", by: "theirs", goal: half},
			{of: "ours", by: "theirs", ofPhase: "mount"},
			{of: "ours", by: "missing"},
		},
		goals: map[string]float64{"requests": 1},
	}
	samples := [][]*sample{
		{{Seconds: 1, Phases: map[string]float64{"mount": 0.5}, Figures: map[string]float64{"requests": 2}}, nil, {Seconds: 1}},
		{{Seconds: 4}, {Seconds: 100}, {Seconds: 2}},
	}
	one := 1.0
	want := []ratioResult{
		{What: "ours / theirs", Value: spread{0.375, 0.25, 0.5}, Goal: &half, Met: true},
		{What: "ours (mount) / theirs", Value: spread{0.125, 0.125, 0.125}},
		{What: "ours: requests", Value: spread{2, 2, 2}, Goal: &one},
	}
	var got result
	got.compare(r, samples)
	if diff := cmp.Diff(want, got.Ratios); diff != "" {
		t.Error(diff)
	}
}

func TestWorkloads(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       map[string][]workload
		fails      bool
	}{
		{"comments and blanks", "# a\n\n  \n", map[string][]workload{}, false},
		{"a command with spaces", "a  b   c  'd  e'\n", map[string][]workload{"a": {{"b", "c  'd  e'"}}}, false},
		{"a name that the image's name begins with", "ab a b\n", map[string][]workload{"ab": {{"a", "b"}}}, false},
		{"two of an image", "a b c\na d e", map[string][]workload{"a": {{"b", "c"}, {"d", "e"}}}, false},
		{"no command", "a b\n", nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseWorkloads(c.text)
			if (err != nil) != c.fails {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(workload{})); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := parseWorkloads(builtin); err != nil {
		t.Error(err)
	}
}

// TestUsage counts a file with two names once.
func TestUsage(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	before, _, err := usage(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	bytes, files, err := usage(dir)
	if err != nil || files != 1 || bytes != before || bytes < 8192 {
		t.Errorf("%d bytes in %d files, %d before: %v", bytes, files, before, err)
	}
}

// TestAdd keeps rows of an older document, but for those measured anew.
func TestAdd(t *testing.T) {
	file, tables := filepath.Join(t.TempDir(), "a.json"), filepath.Join(t.TempDir(), "a.md")
	goal := 0.5
	old := &document{Images: map[string]string{"demo": "old", "big": "old"}}
	old.add(&result{Name: "demo/a", LeftOut: "time was over"})
	old.add(&result{Name: "demo/b", Ratios: []ratioResult{{What: "ours / theirs", Value: spread{0.25, 0.2, 0.3}, Goal: &goal, Met: true}}})
	if err := old.write(file, tables); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(tables)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| demo/b | ours / theirs | 0.25 (0.2–0.3) | 0.5 | met |", "### demo/a\n\nLeft out: time was over.", "Images: big: old; demo: old."} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	now := &document{Images: map[string]string{}}
	if err := now.read(file); err != nil {
		t.Fatal(err)
	}
	now.add(&result{Name: "demo/a"})
	now.add(&result{Name: "demo/c"})
	var names []string
	for _, r := range now.Rows {
		names = append(names, r.Name+r.LeftOut)
	}
	if diff := cmp.Diff([]string{"demo/a", "demo/b", "demo/c"}, names); diff != "" {
		t.Error(diff)
	}
	if now.Images["big"] != "old" {
		t.Error("images of the older document are lost")
	}
	if err := now.read(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Error("no older document:", err)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := now.read(file); err == nil {
		t.Error("a broken document was read")
	}
}
