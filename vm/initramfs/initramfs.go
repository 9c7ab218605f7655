// Package initramfs makes the archive a machine boots from: PID 1 and the kernel modules that it loads. The archive is
// a cpio in the format "newc" (Linux: Documentation/driver-api/early-userspace/buffer-format.rst), not packed, since a
// guest unpacks more slowly than its host copies. Its bytes depend on nothing but PID 1 and the modules.
//
// It holds, besides /init and the device nodes that a kernel and PID 1 need before /dev is mounted:
//
//	/pex/build       Key's value, which PID 1 repeats to its host
//	/pex/modules     the files of modules to load, one a line, in order
//	/pex/NAME.ko     a module
package initramfs

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pexfs/pex/vm/kernel"
)

// Feature is something a machine has and its kernel needs modules for.
type Feature int

// The features.
const (
	PCI      Feature = iota // virtio devices on a PCI bus
	MMIO                    // virtio devices without one
	Console                 // a virtio-serial port
	VirtioFS                // a root over virtio-fs
	Pmem                    // a root in virtio-pmem
	Block                   // a root on virtio-blk
	Verity                  // a root whose blocks are checked as they are read, on blk
	EROFS                   // the root's file system, on pmem or blk
	Overlay                 // a writable layer above the root
	Net                     // a network device
	Vsock                   // a vsock device
	RNG                     // a source of random numbers
	features
)

// modules are what a feature is made of, by name. What they need in turn comes from modules.dep.
var modules = [features][]string{
	PCI:      {"virtio_pci"},
	MMIO:     {"virtio_mmio"},
	Console:  {"virtio_console"},
	VirtioFS: {"virtiofs"},
	Pmem:     {"virtio_pmem", "nd_pmem"},
	Block:    {"virtio_blk"},
	Verity:   {"dm_verity"},
	EROFS:    {"erofs"},
	Overlay:  {"overlay"},
	Net:      {"virtio_net"},
	Vsock:    {"vmw_vsock_virtio_transport"},
}

// wanted are modules that a feature needs on some kernels only, or can do without, and that no dependency names: they are
// loaded first, where the kernel has them.
var wanted = [features][]string{
	Verity: {"sha256_generic"},
	EROFS:  {"crc32c_generic"},
	RNG:    {"virtio_rng"}, // the kernel has other sources, if poorer ones
}

// Spec says what goes into an archive.
type Spec struct {
	// Init is the program that becomes PID 1, statically linked.
	Init []byte
	// ModuleDir is the kernel's, with modules.dep in it; "" for a kernel that has everything built in.
	ModuleDir string
	// Features are what the machine has, in any order.
	Features []Feature
	// KeepSignatures leaves the modules' signatures in place, for a kernel that insists on them. Checking them takes a
	// fifth of the instructions from reset to PID 1's first program, and guards nothing: whoever can change the archive
	// can change the kernel too.
	KeepSignatures bool
}

// loaded is a Spec with the modules' files read, as they are on disk.
type loaded struct {
	init  []byte
	keep  bool // signatures
	list  []kernel.Module
	files [][]byte
}

func load(s Spec) (loaded, error) {
	l := loaded{init: s.Init, keep: s.KeepSignatures}
	if s.ModuleDir == "" {
		return l, nil
	}
	from, err := kernel.OpenModules(s.ModuleDir)
	if err != nil {
		return loaded{}, err
	}
	var names []string
	for f := range features {
		if !slices.Contains(s.Features, f) {
			continue
		}
		for _, name := range wanted[f] {
			if from.Has(name) {
				names = append(names, name)
			}
		}
		names = append(names, modules[f]...)
	}
	if l.list, err = from.Resolve(names...); err != nil {
		return loaded{}, err
	}
	for _, m := range l.list {
		b, err := from.File(m)
		if err != nil {
			return loaded{}, err
		}
		l.files = append(l.files, b)
	}
	return l, nil
}

// key is the SHA-256 over all that goes in, each with its length before it.
func (l loaded) key() string {
	h := sha256.New()
	add := func(b []byte) {
		var n [8]byte
		binary.LittleEndian.PutUint64(n[:], uint64(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	add([]byte("pex initramfs 1"))
	add(l.init)
	if l.keep {
		add([]byte("signatures"))
	}
	for i, m := range l.list {
		add([]byte(m.Name))
		add(l.files[i])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Key identifies the archive of s: 64 hexadecimal digits, another for other bytes.
func Key(s Spec) (string, error) {
	l, err := load(s)
	if err != nil {
		return "", fmt.Errorf("reading boot archive's parts: %w", err)
	}
	return l.key(), nil
}

// Build writes the archive of s.
func Build(w io.Writer, s Spec) error {
	l, err := load(s)
	if err != nil {
		return fmt.Errorf("reading boot archive's parts: %w", err)
	}
	return l.write(w)
}

// Cached returns the path of the archive of s in the folder dir, where it makes it if it isn't there, and its key.
// Several processes may do so at once.
func Cached(dir string, s Spec) (path, key string, err error) {
	l, err := load(s)
	if err != nil {
		return "", "", fmt.Errorf("reading boot archive's parts: %w", err)
	}
	key = l.key()
	path = filepath.Join(dir, key+".cpio")
	if _, err := os.Stat(path); err == nil {
		return path, key, nil // it was synced before it got its name
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", "", fmt.Errorf("looking for boot archive: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", fmt.Errorf("making boot archive: %w", err)
	}
	f, err := os.CreateTemp(dir, ".new-")
	if err != nil {
		return "", "", fmt.Errorf("making boot archive: %w", err)
	}
	defer os.Remove(f.Name())
	err = l.write(f)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		var n counter
		_ = l.write(&n) // what it would take
		return "", "", fmt.Errorf("making boot archive, which takes %d bytes: %w", n, err)
	}
	return path, key, nil
}

// counter is a Writer that counts bytes.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

func (l loaded) write(w io.Writer) error {
	a := &archive{w: w}
	a.dir("dev")
	a.node("dev/console", 0o600, 5, 1)
	a.node("dev/null", 0o666, 1, 3)
	a.dir("pex")
	a.file("pex/build", 0o444, []byte(l.key()+"\n"))
	var list strings.Builder
	for i, m := range l.list {
		b, err := m.Unpack(l.files[i])
		if err != nil {
			return fmt.Errorf("writing boot archive: %w", err)
		}
		if !l.keep {
			b = unsigned(b)
		}
		name := m.Name + ".ko"
		a.file("pex/"+name, 0o444, b)
		list.WriteString(name + "\n")
	}
	a.file("pex/modules", 0o444, []byte(list.String()))
	a.file("init", 0o755, l.init)
	return a.close()
}
