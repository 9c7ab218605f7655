// Package machine runs one virtual machine in a process of its own, its
// supervisor, and attaches this process to it.
//
// The supervisor is this program executed again. It owns the VMM, serves the
// machine's root and passes the frames of vm/guest between the attached process
// and PID 1. It inherits two sockets from the process that starts it:
//
//	control  JSON values: a Config to the supervisor, a Late where that names no image yet, and Events from it
//	frames   the frames of vm/guest, from HELLO on
//
// The end of either ends the machine: the supervisor kills the VMM, waits for it
// and ends. If the supervisor itself is killed, the kernel kills the VMM. So
// nothing outlives the attachment.
//
// Credentials and the program's environment never reach the supervisor but as
// frames that it passes on. It has a session of its own, so that what is typed on
// a terminal interrupts the attached process alone.
package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/vm"
)

// Root says how a machine gets its root.
type Root string

// The roots.
const (
	Auto     Root = "auto" // Pmem if the image is complete and not too large for the machine's memory, else Block
	VirtioFS Root = "virtiofs"
	Block    Root = "blk"
	Pmem     Root = "pmem" // needs a complete image

	// Verity is never chosen by itself and no user's word for a device: the guest
	// compares every block that it reads with the Merkle root of a sealed image.
	Verity Root = "verity"
)

// ParseRoot reads a Root.
func ParseRoot(s string) (Root, error) {
	switch r := Root(s); r {
	case Auto, VirtioFS, Block, Pmem:
		return r, nil
	}
	return "", fmt.Errorf("root device %q: want auto, virtiofs, blk or pmem", s)
}

// Automatic reports whether Auto may become r.
func (r Root) Automatic() bool { return r == Pmem || r == Block }

// Config says what machine to run.
type Config struct {
	// Image is for the supervisor's OpenImage. It may be left out if Root is Block: then the machine boots meanwhile, and
	// Attachment.Open gives it later.
	Image json.RawMessage `json:"image,omitempty"`

	Ref  string `json:"ref"` // the image's name, for people
	Root Root   `json:"root"`

	// IOTimeout is how long the machine's reads wait without any data coming before it ends; 0 is for ever.
	IOTimeout time.Duration `json:"io_timeout_ns"`

	VCPUs    int             `json:"vcpus"`
	Memory   int64           `json:"memory"`   // bytes
	Kernel   string          `json:"kernel"`   // path
	Initrds  map[Root]Initrd `json:"initrds"`  // for every root that Root allows
	Cmdline  []string        `json:"cmdline"`  // kernel parameters
	Verdicts string          `json:"verdicts"` // file that remembers where KVM failed
}

// Late is the image of a Config that had none.
type Late struct {
	Image json.RawMessage `json:"image"`
}

// Initrd is a boot archive.
type Initrd struct {
	Path  string `json:"path"`
	Build string `json:"build"` // what PID 1 says in HELLO
}

// Image is an image as a supervisor reads it. ReadAt waits for missing bytes.
type Image interface {
	Size() int64
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	ReadFd(off int64, n int) (fd uintptr, fdOff int64, ok bool) // where bytes that are present lie
	Meta() *erofs.Image
	File() *os.File // open read-only
	Complete() bool

	// Proof opens a sealed image's dm-verity hash device for reading, and gives the
	// number of blocks that it is over and its Merkle root in hex. The caller closes it.
	Proof() (tree *os.File, blocks int64, root string, err error)
	Close() error
}

// OpenImage opens the image of a Config in the supervisor. warn tells the user what they should know.
type OpenImage func(ctx context.Context, image json.RawMessage, warn func(string)) (Image, error)

// Event is what a supervisor has to say. Exactly one field is set.
type Event struct {
	Warning string   `json:"warning,omitempty"` // something the user should know
	Started *Started `json:"started,omitempty"` // the guest says that it is ready, or that it failed
	Ended   *Ended   `json:"ended,omitempty"`   // the last event
}

// Started is a machine whose guest has spoken.
type Started struct {
	VMM   string   `json:"vmm"`
	Accel vm.Accel `json:"accel"`
	Root  Root     `json:"root"` // any but Auto
	Times Times    `json:"times"`
}

// Times says when things were done.
type Times struct {
	Start    Instant `json:"start"`    // the VMM was about to be started
	Launched Instant `json:"launched"` // the machine's processor ran
	Init     Instant `json:"init"`     // PID 1 had loaded its modules
	Ready    Instant `json:"ready"`    // the root was mounted
}

// Ended is the end of a machine that the attached process didn't ask for.
type Ended struct {
	Error   string   `json:"error"`
	Hint    string   `json:"hint,omitempty"`
	Console []string `json:"console,omitempty"` // the last lines of the guest's console, printable
}

// EndedError is Ended as an error.
type EndedError struct{ Ended }

func (e *EndedError) Error() string { return e.Ended.Error }

// Hint is advice, or empty.
func (e *EndedError) Hint() string { return e.Ended.Hint }

// pmemShare is how much of a machine's memory may go into the page structures of
// its pmem device, as a fraction; they are 64 bytes for every 4 KiB of image.
const (
	pmemShare      = 8
	pageStructPart = 4096 / 64
)

// chooseRoot decides how an image of size bytes becomes the root.
//
// Auto is what was measured to be the cheapest, in seconds of processor time of all processes from the start of pex to the
// end of the program; emulated, on an image of 396 MB with Debian 12's kernel, medians of seven runs taken in turn:
//
//	                     virtio-fs    blk   pmem
//	missing   numpy           4.69   4.49
//	          find /          3.93   3.00
//	complete  numpy           4.24   4.02   3.96
//	          find /          3.41   2.62   2.58
//
// (numpy: python3 imports it.) As many bytes were fetched on either. So what isn't complete is Block, which besides can boot
// before its image is open; what is complete is Pmem, whose files besides take no memory of the machine.
func chooseRoot(want Root, complete bool, size, memory int64) (Root, error) {
	switch want {
	case VirtioFS, Block, Verity:
		return want, nil
	case Pmem:
		if !complete {
			return "", &EndedError{Ended{
				Error: "using pmem as the root: the image is not complete yet",
				Hint:  "wait for it with `pexfs wait`, or let the root be auto or blk",
			}}
		}
		return Pmem, nil
	case Auto:
		if complete && size%vm.PmemAlign == 0 && size/pageStructPart <= memory/pmemShare {
			return Pmem, nil
		}
		return Block, nil
	}
	return "", fmt.Errorf("choosing the root: unknown root %q", want)
}
