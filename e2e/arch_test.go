package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/pexfs/pex/"

// imports says which of the project's own packages each may import, directly or through others. A trailing /... stands for
// all below.
var imports = map[string][]string{
	"lazy/ref":            {},
	"lazy/tree":           {},
	"lazy/tree/...":       {"lazy/tree"},
	"lazy/inflate":        {},
	"lazy/leaf":           {},
	"lazy/profile":        {},
	"lazy/blob":           {},
	"lazy/store":          {"lazy/leaf"},
	"lazy/registry":       {"lazy/ref", "lazy/blob", "lazy/registry/hosts"},
	"lazy/registry/hosts": {},
	"lazy/layout":         {"lazy/ref", "lazy/blob"},
	"lazy/layer":          {"lazy/tree", "lazy/blob", "lazy/inflate", "lazy/leaf"},
	"lazy":                {"lazy/...", "erofs/..."},
	"erofs":               {"erofs/disk", "lazy/tree"},
	"erofs/disk":          {},
	"erofs/...":           {"erofs", "erofs/disk", "lazy/tree"},
	"fusefs":              {"erofs", "erofs/disk", "lazy/tree"},
	"vm":                  {"vm/..."},
	"vm/...":              {"vm", "vm/..."},
	"cmd/...":             {"..."},
	"lazy/blob/...":       {"lazy/blob"},
	"e2e/...":             {"..."},
	"e2e":                 {"..."},
	"cmd/pex-init":        {"vm/..."},
}

// TestImports holds the packages to the direction in which data flows.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Deps", "../...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath string
			Deps       []string
		}
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(p.ImportPath, module)
		allowed, ok := imports[name]
		for dir := name; !ok && strings.Contains(dir, "/"); {
			dir = dir[:strings.LastIndex(dir, "/")]
			allowed, ok = imports[dir+"/..."]
		}
		if !ok {
			t.Errorf("package %s: nothing says what it may import", name)
			continue
		}
		seen++
		for _, d := range p.Deps {
			if d, ours := strings.CutPrefix(d, module); ours && !permits(allowed, d) {
				t.Errorf("package %s imports %s, directly or not; it may import %q", name, d, allowed)
			}
		}
	}
	if seen < 20 {
		t.Errorf("only %d packages were seen", seen)
	}
}

func permits(allowed []string, pkg string) bool {
	for _, a := range allowed {
		if dir, below := strings.CutSuffix(a, "..."); a == pkg || below && strings.HasPrefix(pkg+"/", dir) {
			return true
		}
	}
	return false
}
