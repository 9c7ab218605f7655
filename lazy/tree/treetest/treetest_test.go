package treetest

import (
	"archive/tar"
	"bytes"
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestIndex checks that README.md names every case under a rule, and no other.
func TestIndex(t *testing.T) {
	text, err := testdata.ReadFile("testdata/README.md")
	if err != nil {
		t.Fatal(err)
	}
	rules, wrong, ok := strings.Cut(string(text), "\n## Cases that others get wrong\n")
	if !ok {
		t.Fatal("no section of cases that others get wrong")
	}
	word := regexp.MustCompile(`[0-9a-z]+(-[0-9a-z]+)*`)
	listed := make(map[string]int)
	for _, item := range strings.Split(rules, "\n- ")[1:] {
		item, _, _ = strings.Cut(item, "\n\n")
		item, _, _ = strings.Cut(item, ":")
		for _, name := range word.FindAllString(item, -1) {
			listed[name]++
		}
	}
	known := make(map[string]bool)
	for _, c := range Cases(t) {
		known[c.Name] = true
		if listed[c.Name] != 1 {
			t.Errorf("case %s is listed %d times", c.Name, listed[c.Name])
		}
		if c.Comment == "" || strings.Contains(strings.TrimSpace(c.Comment), "\n\n") {
			t.Errorf("case %s has no sentence that says what it shows", c.Name)
		}
		if (c.Want == "") == (c.Err == "") {
			t.Errorf("case %s wants no tree and no error, or both", c.Name)
		}
	}
	for name := range listed {
		if strings.Contains(name, "-") && !known[name] {
			t.Errorf("%s is listed and is no case", name)
		}
	}
	for _, row := range strings.Split(strings.TrimSpace(wrong), "\n")[2:] {
		cells := strings.Split(row, "|")
		for _, name := range strings.Split(strings.TrimSpace(cells[2]), ", ") {
			if !known[name] {
				t.Errorf("%q is no case: %s", name, row)
			}
		}
	}
}

// TestTar reads the tars of all cases with archive/tar.
func TestTar(t *testing.T) {
	var left []string
	for _, c := range Cases(t) {
		if !c.InTar() {
			left = append(left, c.Name)
			continue
		}
		for i, l := range c.Layers {
			var b bytes.Buffer
			if err := c.WriteTar(&b, i); err != nil {
				t.Fatalf("case %s: %v", c.Name, err)
			}
			tr := tar.NewReader(&b)
			for _, e := range l {
				h, err := tr.Next()
				if err != nil {
					t.Fatalf("case %s: %v", c.Name, err)
				}
				content, err := io.ReadAll(tr)
				if err != nil {
					t.Fatalf("case %s: %v", c.Name, err)
				}
				type entry struct {
					name, link string
					mode       uint32
					uid, gid   int
					sec        int64
					ns, xattrs int
					content    string
				}
				got := entry{h.Name, h.Linkname, uint32(h.Mode), h.Uid, h.Gid, h.ModTime.Unix(), h.ModTime.Nanosecond(), 0, string(content)}
				for k := range h.PAXRecords {
					if strings.HasPrefix(k, "SCHILY.xattr.") {
						got.xattrs++
					}
				}
				want := entry{e.Name, e.Linkname, e.Mode, int(e.UID), int(e.GID), e.Mtime.Sec, int(e.Mtime.Nsec), len(e.Xattrs), ""}
				if e.Size > 0 {
					text := c.Contents[i][e.Content].Text
					want.content = text + strings.Repeat("\x00", int(e.Size)-len(text))
				}
				if d := cmp.Diff(want, got, cmp.AllowUnexported(entry{})); d != "" {
					t.Errorf("case %s: -want +got:\n%s", c.Name, d)
				}
			}
		}
	}
	want := []string{"attribute-twice", "large-sizes", "negative-size", "unknown-type", "zero-byte"}
	if d := cmp.Diff(want, left); d != "" {
		t.Errorf("cases that no tar can have: -want +got:\n%s", d)
	}
}

func TestParseErrors(t *testing.T) {
	for name, c := range map[string]struct{ line, say string }{
		"type":         {"thing a 644", `"thing" is no type`},
		"mode":         {"dir a 999", "invalid syntax"},
		"mode missing": {"dir a", "invalid syntax"},
		"field":        {"dir a 755 color=1", `"color" is no field`},
		"quote":        {`file "a 644`, "a quote is open"},
		"device":       {"char c 600 1", "unexpected"},
		"nanoseconds":  {"file a 644 mtime=1.5", "nine digits"},
		"size":         {"file a 644 text size=2", "less than the content"},
		"repetition":   {"file {a*2000000} 644", "makes it longer"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("x", "-- layer0 --\n"+c.line+"\n-- want --\n")
			if err == nil || !strings.Contains(err.Error(), c.say) {
				t.Errorf("got %v, want an error that says %q", err, c.say)
			}
		})
	}
}
