package e2e

import (
	"strings"
	"testing"
)

// TestPull opens a cached tag under each policy while its registry is gone, and an unknown one.
func TestPull(t *testing.T) {
	l := newLab(t)
	l.serve()
	ref := l.addr + "/demo-estargz:latest"
	l.umount(l.mount("--no-fill", ref))
	var before []struct{ Tags []struct{ Ref, Asked string } }
	decode(t, l.do("pexfs", "ls", "--json"), &before)
	if len(before) != 1 || len(before[0].Tags) != 1 || before[0].Tags[0].Ref != ref || before[0].Tags[0].Asked == "" {
		t.Fatalf("the cache has %+v", before)
	}
	l.stopRegistry()
	for _, tt := range []struct {
		pull, tag string
		code      int
		say       []string
	}{
		{pull: "missing", tag: ref},
		{pull: "never", tag: ref},
		{pull: "newer", tag: ref, say: []string{"pexfs: warning: ", "refused", "using what " + ref + " was on "}},
		{pull: "always", tag: ref, code: 1, say: []string{"refused", "pexfs: hint: ", "--pull missing"}},
		{pull: "never", tag: l.addr + "/demo:latest", code: 1, say: []string{"doesn't know", "pexfs: hint: ", "--pull never"}},
		{pull: "daily", tag: ref, code: 1, say: []string{"want missing, newer, always or never"}},
	} {
		dir := t.TempDir()
		out, code := l.try("pexfs", "mount", "-q", "--no-fill", "--pull", tt.pull, tt.tag, dir)
		l.umount(dir)
		if code != tt.code || (out == "") != (tt.say == nil) {
			t.Errorf("--pull %s %s ended with %d: %s", tt.pull, tt.tag, code, out)
		}
		for _, s := range tt.say {
			if !strings.Contains(out, s) {
				t.Errorf("--pull %s %s: %q is not in: %s", tt.pull, tt.tag, s, out)
			}
		}
	}
	if out, code := l.try("pexfs", "mount", "--offline", "--pull", "never", ref, t.TempDir()); code != 1 || !strings.Contains(out, "offline") {
		t.Errorf("a contradiction ended with %d: %s", code, out)
	}
}
