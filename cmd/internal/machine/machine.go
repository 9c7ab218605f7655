// Package machine runs one virtual machine in a process of its own, its
// supervisor, and attaches this process to it.
//
// The supervisor is this program executed again. It owns the VMM, serves the
// machine's root and passes the frames of vm/guest between the attached process
// and PID 1. It inherits two sockets from the process that starts it:
//
//	control  JSON values: a Config to the supervisor, then Events from it
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
	Auto     Root = "auto" // Pmem if the image is complete and not too large for the machine's memory, else VirtioFS
	VirtioFS Root = "virtiofs"
	Pmem     Root = "pmem" // needs a complete image

	// Verity is never chosen by itself and no user's word for a device: the guest
	// compares every block that it reads with the Merkle root of a sealed image.
	Verity Root = "verity"
)

// ParseRoot reads a Root.
func ParseRoot(s string) (Root, error) {
	switch r := Root(s); r {
	case Auto, VirtioFS, Pmem:
		return r, nil
	}
	return "", fmt.Errorf("root device %q: want auto, virtiofs or pmem", s)
}

// Config says what machine to run.
type Config struct {
	Image    json.RawMessage `json:"image"` // for the supervisor's OpenImage
	Ref      string          `json:"ref"`   // the image's name, for people
	Root     Root            `json:"root"`
	VCPUs    int             `json:"vcpus"`
	Memory   int64           `json:"memory"`   // bytes
	Kernel   string          `json:"kernel"`   // path
	Initrds  map[Root]Initrd `json:"initrds"`  // for every root that Root allows
	Cmdline  []string        `json:"cmdline"`  // kernel parameters
	Verdicts string          `json:"verdicts"` // file that remembers where KVM failed
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
	Meta() *erofs.Image
	File() *os.File // open read-only
	Complete() bool

	// Proof opens a sealed image's dm-verity hash device for reading, and gives the
	// number of blocks that it is over and its Merkle root in hex. The caller closes it.
	Proof() (tree *os.File, blocks int64, root string, err error)
	Close() error
}

// OpenImage opens the image of a Config in the supervisor.
type OpenImage func(ctx context.Context, image json.RawMessage) (Image, error)

// Event is what a supervisor has to say. Exactly one field is set.
type Event struct {
	Warning string   `json:"warning,omitempty"` // something the user should know
	Started *Started `json:"started,omitempty"` // the guest says that it is ready, or that it failed
	Ended   *Ended   `json:"ended,omitempty"`   // the last event
}

// Started is a machine whose guest has spoken.
type Started struct {
	VMM   string        `json:"vmm"`
	Accel vm.Accel      `json:"accel"`
	Root  Root          `json:"root"`    // Pmem, VirtioFS or Verity
	Open  time.Duration `json:"open_ns"` // to open the image and find the VMM
	Boot  time.Duration `json:"boot_ns"` // from the start of the VMM
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
func chooseRoot(want Root, complete bool, size, memory int64) (Root, error) {
	switch want {
	case VirtioFS, Verity:
		return want, nil
	case Pmem:
		if !complete {
			return "", &EndedError{Ended{
				Error: "using pmem as the root: the image is not complete yet",
				Hint:  "wait for it with `pexfs wait`, or let the root be auto or virtiofs",
			}}
		}
		return Pmem, nil
	case Auto:
		if complete && size%vm.PmemAlign == 0 && size/pageStructPart <= memory/pmemShare {
			return Pmem, nil
		}
		return VirtioFS, nil
	}
	return "", fmt.Errorf("choosing the root: unknown root %q", want)
}
