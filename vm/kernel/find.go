package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrNoKernel is wrapped by Find's error when there is no kernel to be found anywhere it looks by itself; fetching one
// (Fetch) helps.
var ErrNoKernel = errors.New("no kernel found")

// Kernel is a kernel to boot.
type Kernel struct {
	// Path is a bzImage or an ELF file.
	Path string
	// Version is what uname -r would say, "" if the file doesn't tell.
	Version string
	// ModuleDir is the folder with modules.dep, "" if there is none: then all that a machine needs must be built in.
	ModuleDir string
}

// Search says where Find looks.
type Search struct {
	// Given are paths named by the user, as by a flag and a variable; the first that isn't "" is used, and nothing else
	// is tried. Each is a kernel, or a folder such as dir/VERSION.
	Given []string
	// Dir is the folder of kernels; its default comes next.
	Dir string
	// Root is the file system whose /boot comes last, "/" for the host's own.
	Root string
}

// Find returns the first kernel of s: a given one, the default of the folder of kernels, or the newest in /boot that
// can be read and has modules.
func Find(s Search) (Kernel, error) {
	for _, path := range s.Given {
		if path != "" {
			return open(path, s.Root)
		}
	}
	link := filepath.Join(s.Dir, "default")
	if _, err := os.Lstat(link); err == nil {
		return open(link, s.Root)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return Kernel{}, fmt.Errorf("finding kernel: %w", err)
	}
	return findBoot(s.Root)
}

// findBoot looks for root/boot/vmlinuz-VERSION.
func findBoot(root string) (Kernel, error) {
	const prefix = "vmlinuz-"
	boot := filepath.Join(root, "boot")
	list, err := os.ReadDir(boot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Kernel{}, fmt.Errorf("finding kernel: %w", err)
	}
	var best Kernel
	unreadable := ""
	for _, e := range list {
		version, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok || best.Path != "" && compareVersions(version, best.Version) < 0 {
			continue
		}
		modules := moduleDir(root, version)
		if modules == "" {
			continue
		}
		path := filepath.Join(boot, e.Name())
		f, err := os.Open(path)
		if err != nil {
			unreadable = fmt.Sprintf(" (%s can't be read)", path)
			continue
		}
		f.Close()
		best = Kernel{Path: path, Version: version, ModuleDir: modules}
	}
	if best.Path == "" {
		return Kernel{}, fmt.Errorf("%w%s", ErrNoKernel, unreadable)
	}
	return best, nil
}

// moduleDir is where root has the modules of version, "" if nowhere.
func moduleDir(root, version string) string {
	for _, lib := range []string{"lib/modules", "usr/lib/modules"} {
		if dir := filepath.Join(root, lib, version); hasModules(dir) {
			return dir
		}
	}
	return ""
}

func hasModules(dir string) bool {
	st, err := os.Stat(filepath.Join(dir, "modules.dep"))
	return err == nil && st.Mode().IsRegular()
}

// open describes the kernel at path, a file or a folder with vmlinuz in it.
func open(path, root string) (Kernel, error) {
	path, err := filepath.EvalSymlinks(path)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return Kernel{}, fmt.Errorf("opening kernel: %w", err)
	}
	st, err := os.Stat(path)
	if err != nil {
		return Kernel{}, fmt.Errorf("opening kernel: %w", err)
	}
	if st.IsDir() {
		path = filepath.Join(path, "vmlinuz")
	}
	f, err := os.Open(path)
	if err != nil {
		return Kernel{}, fmt.Errorf("opening kernel: %w", err)
	}
	defer f.Close()
	k := Kernel{Path: path}
	dir := filepath.Dir(path)
	if k.Version, err = version(f); err != nil {
		return Kernel{}, fmt.Errorf("opening kernel %s: %w", path, err)
	}
	if k.Version == "" { // an ELF file; at least its name may tell
		_, k.Version, _ = strings.Cut(filepath.Base(path), "-")
	}
	if m := filepath.Join(dir, "modules"); hasModules(m) {
		k.ModuleDir = m
		return k, nil
	}
	if k.Version != "" {
		for _, root := range []string{dir, filepath.Dir(dir), root} {
			if k.ModuleDir = moduleDir(root, k.Version); k.ModuleDir != "" {
				break
			}
		}
	}
	return k, nil
}

// List returns the kernels in the folder dir, oldest version first, and which of them is the default, -1 if none.
func List(dir string) (kernels []Kernel, def int, err error) {
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, -1, fmt.Errorf("listing kernels: %w", err)
	}
	target, _ := os.Readlink(filepath.Join(dir, "default"))
	for _, e := range list {
		path := filepath.Join(dir, e.Name(), "vmlinuz")
		if st, err := os.Stat(path); !e.IsDir() || err != nil || !st.Mode().IsRegular() {
			continue
		}
		k := Kernel{Path: path, Version: e.Name()}
		if m := filepath.Join(dir, e.Name(), "modules"); hasModules(m) {
			k.ModuleDir = m
		}
		kernels = append(kernels, k)
	}
	slices.SortFunc(kernels, func(a, b Kernel) int { return compareVersions(a.Version, b.Version) })
	def = -1
	for i, k := range kernels {
		if k.Version == target {
			def = i
		}
	}
	return kernels, def, nil
}

// compareVersions orders versions by their numbers first: 6.9 before 6.10.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		na, ra := leadingNumber(a)
		nb, rb := leadingNumber(b)
		if na >= 0 && nb >= 0 {
			if na != nb {
				return cmp.Compare(na, nb)
			}
			a, b = ra, rb
			continue
		}
		if a[0] != b[0] {
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

// leadingNumber splits digits off s; n is -1 if there are none, or too many for a number.
func leadingNumber(s string) (n int, rest string) {
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	n, err := strconv.Atoi(s[:i])
	if err != nil {
		return -1, s
	}
	return n, s[i:]
}
