package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// ErrCantFetch is wrapped by Fetch's error on a host that has no Debian packages.
var ErrCantFetch = errors.New("no way to fetch a kernel on this host")

// Fetch gets the newest kernel that Debian makes for virtual machines, with the host's own apt and its keys, and makes
// it the default in the folder of kernels, dir. It needs no privileges and installs nothing. progress is told what
// happens, a line at a time.
func Fetch(ctx context.Context, dir string, progress func(string)) (Kernel, error) {
	for _, tool := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return Kernel{}, fmt.Errorf("%w: %w", ErrCantFetch, err)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Kernel{}, fmt.Errorf("fetching kernel: %w", err)
	}
	tmp, err := os.MkdirTemp(dir, ".fetch-")
	if err != nil {
		return Kernel{}, fmt.Errorf("fetching kernel: %w", err)
	}
	defer os.RemoveAll(tmp)

	meta := "linux-image-cloud-" + runtime.GOARCH
	progress("looking up " + meta)
	pkg, err := resolve(ctx, meta)
	if err != nil {
		return Kernel{}, fmt.Errorf("fetching kernel: %w", err)
	}
	progress("downloading " + pkg)
	if _, err := run(ctx, tmp, "apt-get", "-q", "download", pkg); err != nil {
		return Kernel{}, fmt.Errorf("fetching kernel: %w", err)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return Kernel{}, fmt.Errorf("fetching kernel: downloading %s left %d packages", pkg, len(debs))
	}
	progress("unpacking " + filepath.Base(debs[0]))
	root := filepath.Join(tmp, "root")
	if _, err := run(ctx, tmp, "dpkg-deb", "-x", debs[0], root); err != nil {
		return Kernel{}, fmt.Errorf("fetching kernel: %w", err)
	}
	k, err := install(root, dir)
	if err != nil {
		return Kernel{}, fmt.Errorf("fetching kernel: installing %s: %w", pkg, err)
	}
	progress("default kernel is " + k.Version)
	return k, nil
}

// resolve returns the package that a metapackage for kernels depends on.
func resolve(ctx context.Context, meta string) (string, error) {
	out, err := run(ctx, "", "apt-cache", "depends", "--important", meta)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "Depends:" && strings.HasPrefix(f[1], "linux-image-") {
			return f[1], nil
		}
	}
	return "", fmt.Errorf("%w: apt knows no package %s (its lists may be missing: apt-get update)", ErrCantFetch, meta)
}

// run runs a program and returns what it wrote. What it complained of is in the error.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return "", fmt.Errorf("running %s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// install moves the kernel and the modules of an unpacked package into dir and makes them the default. root is on the
// same file system as dir.
func install(root, dir string) (Kernel, error) {
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return Kernel{}, fmt.Errorf("package has %d kernels", len(images))
	}
	version := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	staged := filepath.Join(root, version)
	if err := os.Mkdir(staged, 0o755); err != nil {
		return Kernel{}, err
	}
	if err := os.Rename(images[0], filepath.Join(staged, "vmlinuz")); err != nil {
		return Kernel{}, err
	}
	modules := filepath.Join(staged, "modules")
	for _, lib := range []string{"lib/modules", "usr/lib/modules"} {
		err = os.Rename(filepath.Join(root, lib, version), modules)
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return Kernel{}, err
	}
	if err := writeDeps(modules); err != nil {
		return Kernel{}, err
	}
	k := Kernel{Path: filepath.Join(dir, version, "vmlinuz"), Version: version, ModuleDir: filepath.Join(dir, version, "modules")}
	// A folder can't be replaced in one step, so an old one goes first.
	err = os.Rename(filepath.Join(dir, version), filepath.Join(root, "old"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Kernel{}, err
	}
	if err := os.Rename(staged, filepath.Join(dir, version)); err != nil {
		return Kernel{}, err
	}
	link := filepath.Join(root, "default")
	if err := os.Symlink(version, link); err != nil {
		return Kernel{}, err
	}
	return k, os.Rename(link, filepath.Join(dir, "default"))
}
