package kernel

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const maxModule = 64 << 20 // of one module, unpacked, in bytes

// ErrNoModule is wrapped by errors about a module that a kernel neither has nor has built in.
var ErrNoModule = errors.New("kernel has no such module")

// Modules is what a folder such as /lib/modules/VERSION holds. It is safe for concurrent use.
type Modules struct {
	dir     string
	byName  map[string]moduleEntry
	builtin map[string]bool
}

type moduleEntry struct {
	path string   // relative to the folder
	deps []string // paths, to be loaded from the last to the first
}

// Module is a module in its file.
type Module struct {
	// Name is the kernel's name of it, with underscores.
	Name string
	path string
}

// OpenModules reads modules.dep and modules.builtin in dir, in the form of modules.dep(5).
func OpenModules(dir string) (*Modules, error) {
	m := &Modules{dir: dir, byName: make(map[string]moduleEntry), builtin: make(map[string]bool)}
	err := eachLine(filepath.Join(dir, "modules.dep"), func(line string) error {
		path, deps, ok := strings.Cut(line, ":")
		if !ok {
			return fmt.Errorf("malformed line %q", line)
		}
		e := moduleEntry{path: path, deps: strings.Fields(deps)}
		for _, p := range append([]string{path}, e.deps...) {
			if !filepath.IsLocal(p) {
				return fmt.Errorf("path %q leaves the folder", p)
			}
		}
		m.byName[moduleName(path)] = e
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = eachLine(filepath.Join(dir, "modules.builtin"), func(line string) error {
		m.builtin[moduleName(line)] = true
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return m, nil
}

func eachLine(path string, do func(string) error) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("reading modules: %w", err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() && err == nil {
		if line := strings.TrimSpace(sc.Text()); line != "" {
			err = do(line)
		}
	}
	if err = errors.Join(err, sc.Err()); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	return nil
}

// moduleName is the kernel's name of the module in the file path.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// Has tells whether the kernel has a module of that name, built in or not.
func (m *Modules) Has(name string) bool {
	name = moduleName(name)
	_, ok := m.byName[name]
	return ok || m.builtin[name]
}

// Resolve returns the named modules and all they need, in an order in which they can be loaded, each once. Those built
// into the kernel are left out; one that the kernel doesn't have is an ErrNoModule.
func (m *Modules) Resolve(names ...string) ([]Module, error) {
	var list []Module
	seen := make(map[string]bool)
	add := func(path string) {
		if name := moduleName(path); !seen[name] {
			seen[name] = true
			list = append(list, Module{Name: name, path: path})
		}
	}
	for _, name := range names {
		name = moduleName(name)
		e, ok := m.byName[name]
		switch {
		case !ok && m.builtin[name]:
			continue
		case !ok:
			return nil, fmt.Errorf("resolving module %s in %s: %w", name, m.dir, ErrNoModule)
		}
		for i := len(e.deps) - 1; i >= 0; i-- {
			add(e.deps[i])
		}
		add(e.path)
	}
	return list, nil
}

// File returns the bytes of a module's file, which may be packed.
func (m *Modules) File(mod Module) ([]byte, error) {
	f, err := os.Open(filepath.Join(m.dir, mod.path))
	if err != nil {
		return nil, fmt.Errorf("reading module %s: %w", mod.Name, err)
	}
	defer f.Close()
	b, err := readAll(f, maxModule)
	if err != nil {
		return nil, fmt.Errorf("reading module %s: %w", mod.Name, err)
	}
	return b, nil
}

// Unpack returns the ELF file of a module, given the bytes of its file: plain, or packed by gzip, zstd or xz. For the
// last it runs the program xz (ErrXZ).
func (mod Module) Unpack(file []byte) ([]byte, error) {
	b, err := decompress(file, maxModule)
	if err == nil && !strings.HasPrefix(string(b[:min(4, len(b))]), elfMagic) {
		err = fmt.Errorf("%w: not an ELF file", ErrFormat)
	}
	if err != nil {
		return nil, fmt.Errorf("unpacking module %s: %w", mod.Name, err)
	}
	return b, nil
}
