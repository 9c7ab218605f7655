package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/pexfs/pex/cmd/internal/machine"
	"github.com/pexfs/pex/vm/initramfs"
	"github.com/pexfs/pex/vm/kernel"
)

// The variables that name parts of a machine.
const (
	kernelEnv = "PEX_KERNEL"
	initEnv   = "PEX_INIT"
)

// bootSet is what machines boot: a kernel, and an archive for each root. PID 1 says
// which archive it came from.
type bootSet struct {
	kernel  string // path
	version string // of the kernel, for people; may be empty
	initrds map[machine.Root]machine.Initrd
}

// kernelDir is the folder of kernels.
func kernelDir(cacheDir string) string { return filepath.Join(cacheDir, "kernels") }

// findKernel finds the kernel to boot; given may be empty.
func findKernel(cacheDir, given string) (kernel.Kernel, error) {
	k, err := kernel.Find(kernel.Search{Given: []string{given, os.Getenv(kernelEnv)}, Dir: kernelDir(cacheDir), Root: "/"})
	if errors.Is(err, kernel.ErrNoKernel) {
		err = hinted{err, "get one with `pex kernel fetch`, or name one with --kernel"}
	}
	return k, err
}

// makeBootSet finds a kernel and makes what is missing of the set: once for each
// kernel and pex-init, in the cache folder.
func makeBootSet(cacheDir, given string, root machine.Root) (*bootSet, error) {
	k, err := findKernel(cacheDir, given)
	if err != nil {
		return nil, err
	}
	set := &bootSet{version: k.Version, initrds: make(map[machine.Root]machine.Initrd)}
	set.kernel, err = kernel.Vmlinux(k.Path, kernelDir(cacheDir))
	if errors.Is(err, kernel.ErrNoPVH) {
		set.kernel, err = k.Path, nil
	}
	if err != nil {
		return nil, err
	}
	initPath, err := findInit()
	if err != nil {
		return nil, err
	}
	pid1, err := os.ReadFile(initPath)
	if err != nil {
		return nil, fmt.Errorf("reading PID 1 of machines: %w", err)
	}
	base := []initramfs.Feature{initramfs.PCI, initramfs.Console, initramfs.RNG, initramfs.Overlay}
	for r, features := range map[machine.Root][]initramfs.Feature{
		machine.VirtioFS: append(base[:len(base):len(base)], initramfs.VirtioFS),
		machine.Block:    append(base[:len(base):len(base)], initramfs.Block, initramfs.EROFS),
		machine.Pmem:     append(base[:len(base):len(base)], initramfs.Pmem, initramfs.EROFS),
		machine.Verity:   append(base[:len(base):len(base)], initramfs.Block, initramfs.Verity, initramfs.EROFS),
	} {
		if r != root && (root != machine.Auto || !r.Automatic()) {
			continue
		}
		path, key, err := initramfs.Cached(filepath.Join(cacheDir, "boot"), initramfs.Spec{
			Init: pid1, ModuleDir: k.ModuleDir, Features: features,
		})
		if err != nil {
			return nil, err
		}
		set.initrds[r] = machine.Initrd{Path: path, Build: key}
	}
	return set, nil
}

// findInit finds the program that is PID 1 in machines: the one that initEnv names,
// or pex-init in this program's folder or in lib/pex beside it.
func findInit() (string, error) {
	if path := os.Getenv(initEnv); path != "" {
		return path, nil
	}
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding pex-init: %w", err)
	}
	dir := filepath.Dir(exe)
	for _, path := range []string{filepath.Join(dir, "pex-init"), filepath.Join(dir, "..", "lib", "pex", "pex-init")} {
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", hinted{
		fmt.Errorf("finding pex-init: it is neither in %s nor in lib/pex beside it", dir),
		"install pex-init with pex, or name it in " + initEnv,
	}
}
