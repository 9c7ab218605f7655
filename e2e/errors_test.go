package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func decode(t *testing.T, s string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), v); err != nil {
		t.Fatalf("%v in %.300s", err, s)
	}
}

// TestErrors holds every error to one line that names the thing, and a hint where there is one.
func TestErrors(t *testing.T) {
	l := newLab(t)
	l.serve()
	dir := t.TempDir()
	for name, c := range map[string]struct {
		args []string
		say  []string
	}{
		"unknown tag":          {[]string{"pexfs", "mount", l.addr + "/demo:none", dir}, []string{"demo:none", "hint: check the name"}},
		"unknown name":         {[]string{"pexfs", "mount", l.addr + "/nothing", dir}, []string{"nothing", "hint: check the name"}},
		"nobody answers":       {[]string{"pexfs", "mount", "127.0.0.1:1/x:y", dir}, []string{"127.0.0.1:1", "refused", "hint: check the network"}},
		"not a reference":      {[]string{"pexfs", "mount", "UPPER/case", dir}, []string{"UPPER/case"}},
		"no folder":            {[]string{"pexfs", "mount", l.addr + "/demo", filepath.Join(dir, "none")}, []string{"no such file"}},
		"not a layout":         {[]string{"pexfs", "mount", "oci:" + dir, dir}, []string{dir}},
		"not cached":           {[]string{"pexfs", "wait", "busybox"}, []string{"busybox", "not in the cache"}},
		"not mounted":          {[]string{"pexfs", "umount", dir}, []string{dir}},
		"no kernel":            {[]string{"pex", "run", "--kernel", filepath.Join(dir, "none"), l.addr + "/demo-estargz"}, []string{"none"}},
		"pmem of a lazy image": {[]string{"pex", "run", "--no-fill", "--root", "pmem", l.addr + "/demo-estargz"}, []string{"complete"}},
	} {
		t.Run(name, func(t *testing.T) {
			out, code := l.try(c.args[0], c.args[1:]...)
			if want := map[string]int{"pexfs": 1, "pex": 125}[c.args[0]]; code != want {
				t.Errorf("ended with %d, not %d", code, want)
			}
			for _, s := range append(c.say, c.args[0]+": error: ") {
				if !strings.Contains(out, s) {
					t.Errorf("%q is not in: %s", s, out)
				}
			}
			for i, line := range strings.Split(strings.TrimSpace(out), "\n") {
				if i > 1 || i == 1 && !strings.Contains(line, ": hint: ") {
					t.Errorf("more than a line: %s", out)
				}
			}
		})
	}
	left, err := os.ReadDir(filepath.Join(l.cache, "tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
