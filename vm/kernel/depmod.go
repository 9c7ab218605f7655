package kernel

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// writeDeps writes modules.dep for the modules in dir, which a package leaves to its installation. Dependencies come
// from what each module says of itself.
func writeDeps(dir string) error {
	paths := make(map[string]string)   // by name
	needs := make(map[string][]string) // names, by name
	err := filepath.WalkDir(filepath.Join(dir, "kernel"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.Contains(d.Name(), ".ko") {
			return err
		}
		file, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		mod := Module{Name: moduleName(path)}
		b, err := mod.Unpack(file)
		if err != nil {
			return err
		}
		if needs[mod.Name], err = moduleNeeds(b); err != nil {
			return fmt.Errorf("module %s: %w", mod.Name, err)
		}
		paths[mod.Name], err = filepath.Rel(dir, path)
		return err
	})
	if err != nil {
		return fmt.Errorf("listing modules: %w", err)
	}
	var out strings.Builder
	names := make([]string, 0, len(paths))
	for name := range paths {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		out.WriteString(paths[name] + ":")
		order := loadOrder(name, needs)
		for i := len(order) - 2; i >= 0; i-- { // all but the module itself, which is the last
			if p, ok := paths[order[i]]; ok {
				out.WriteString(" " + p)
			}
		}
		out.WriteByte('\n')
	}
	return os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(out.String()), 0o644)
}

// loadOrder lists name behind all that it needs, each once. Circles are cut.
func loadOrder(name string, needs map[string][]string) []string {
	type visit struct {
		name string
		next int // of its needs
	}
	var order []string
	seen := map[string]bool{name: true}
	stack := []visit{{name: name}}
	for len(stack) > 0 {
		v := &stack[len(stack)-1]
		if v.next == len(needs[v.name]) {
			order = append(order, v.name)
			stack = stack[:len(stack)-1]
			continue
		}
		dep := needs[v.name][v.next]
		v.next++
		if !seen[dep] {
			seen[dep] = true
			stack = append(stack, visit{name: dep})
		}
	}
	return order
}

// moduleNeeds reads the field depends of a module's section .modinfo, which is a list of NAME=VALUE, each with a NUL.
func moduleNeeds(b []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("%w: no section .modinfo", ErrFormat)
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(field), "depends="); ok && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return nil, nil
}
