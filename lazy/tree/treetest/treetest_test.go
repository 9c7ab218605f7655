package treetest

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestIndex checks that README.md has every case once, with the sentence of the case itself and what comes of it, and no other.
func TestIndex(t *testing.T) {
	text, err := testdata.ReadFile("testdata/README.md")
	if err != nil {
		t.Fatal(err)
	}
	rules, wrong, ok := strings.Cut(string(text), "\n## Cases that others get wrong\n")
	if !ok {
		t.Fatal("no section of cases that others get wrong")
	}
	want, got := make(map[string]string), make(map[string]string)
	for _, c := range Cases(t) {
		if c.Comment == "" || (c.Want == "") == (c.Err == "") {
			t.Errorf("case %s has no sentence that says what it shows, or wants no tree and no error, or both", c.Name)
		}
		row := "| " + c.Name + " | " + strings.Join(strings.Fields(c.Comment), " ") + " | "
		switch {
		case c.Err != "":
			row += "refused "
		case len(c.Ambiguous) > 0:
			row += "ambiguous "
		}
		want[c.Name] = row + "|"
	}
	for _, row := range rows(rules) {
		name := cell(row, 1)
		if got[name] != "" {
			t.Errorf("case %s is listed twice", name)
		}
		got[name] = row
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-cases +README.md:\n%s", d)
	}
	for _, row := range rows(wrong) {
		for name := range strings.SplitSeq(cell(row, 2), ", ") {
			if want[name] == "" {
				t.Errorf("%q is no case: %s", name, row)
			}
		}
	}
}

// rows are the rows of the tables of a text, without their heads.
func rows(text string) (all []string) {
	head := true
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case !strings.HasPrefix(line, "|"):
			head = true
		case strings.HasPrefix(line, "| ---"):
			head = false
		case !head:
			all = append(all, line)
		}
	}
	return all
}

// cell is a cell of a row, from 1.
func cell(row string, n int) string { return strings.TrimSpace(strings.Split(row, "|")[n]) }

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
