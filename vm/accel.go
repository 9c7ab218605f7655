package vm

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// KVMDeadline is how long a guest under KVM may take to say READY before the
// machine is taken for one that will never say it. A kernel under a KVM that
// works takes well under a second.
const KVMDeadline = 15 * time.Second

// HasVirtualization reports whether cpuinfo, in the form of /proc/cpuinfo, shows
// a processor that can run guests: the flag vmx or svm.
func HasVirtualization(cpuinfo io.Reader) (bool, error) {
	sc := bufio.NewScanner(cpuinfo)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		key, flags, ok := strings.Cut(sc.Text(), ":")
		if !ok || strings.TrimSpace(key) != "flags" {
			continue
		}
		for f := range strings.FieldsSeq(flags) {
			if f == "vmx" || f == "svm" {
				return true, nil
			}
		}
	}
	return false, sc.Err()
}

// Host is what the choice of an accelerator looks at.
type Host struct {
	BootID  string // of the running kernel: /proc/sys/kernel/random/boot_id
	Release string // of the running kernel
	KVM     error  // why KVM can't be tried; nil: it can
}

// ReadHost reads the Host that this process runs on.
func ReadHost() Host {
	var h Host
	if id, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		h.BootID = strings.TrimSpace(string(id))
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		h.Release = unix.ByteSliceToString(u.Release[:])
	}
	h.KVM = kvmUsable("/proc/cpuinfo", "/dev/kvm")
	return h
}

// kvmUsable says why KVM shouldn't be tried. The device is touched only on a
// processor that could serve it: one that merely exists may hang its guests.
func kvmUsable(cpuinfo, device string) error {
	f, err := os.Open(cpuinfo)
	if err != nil {
		return fmt.Errorf("reading processor flags: %w", err)
	}
	defer f.Close()
	if ok, err := HasVirtualization(f); err != nil {
		return fmt.Errorf("reading processor flags: %w", err)
	} else if !ok {
		return errors.New("the processor shows neither vmx nor svm")
	}
	if err := unix.Access(device, unix.R_OK|unix.W_OK); err != nil {
		return fmt.Errorf("using %s: %w", device, err)
	}
	return nil
}

// KVMFailure is the error of an attempt under KVM that was given up. It tells
// the user, once, why his machines are slow.
type KVMFailure struct{ Err error }

func (e *KVMFailure) Error() string { return "running under KVM: " + e.Err.Error() }

// Unwrap gives what went wrong.
func (e *KVMFailure) Unwrap() error { return e.Err }

// Booter starts a machine with the best accelerator that works. Whether KVM
// does is known only when a real guest has come up: small probes lie. So a
// machine that doesn't get ready under KVM is ended and started again under TCG
// (nothing of the user's has run yet), and that is remembered until the host
// boots, its kernel or the VMM changes.
type Booter struct {
	Host     Host
	Memory   Verdicts
	VMM      string        // identity of the VMM: a version, or a file's identity
	Deadline time.Duration // for READY under KVM; 0: KVMDeadline

	// From begins the Deadline when it is closed, for guests that wait for something else meanwhile; nil: at once.
	From <-chan struct{}

	// Fallback is told of a KVM that was tried in vain, once. It may be nil.
	Fallback func(*KVMFailure)
}

// Boot calls attempt with the accelerator to use, and a second time if KVM
// failed. An attempt starts a machine and returns when its guest is ready; its
// context bounds that wait alone, and ends when Boot returns. An attempt that
// fails leaves nothing of its machine behind.
func (b *Booter) Boot(ctx context.Context, attempt func(ctx context.Context, a Accel) error) (Accel, error) {
	key := b.key()
	if b.Host.KVM != nil || b.Memory.Failed(key) {
		return TCG, attempt(ctx, TCG)
	}
	deadline := b.Deadline
	if deadline == 0 {
		deadline = KVMDeadline
	}
	tctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		if b.From != nil {
			select {
			case <-b.From:
			case <-ended:
				return
			}
		}
		t := time.NewTimer(deadline)
		defer t.Stop()
		select {
		case <-t.C:
			cancel(fmt.Errorf("the guest was not ready after %v", deadline))
		case <-ended:
		}
	}()
	err := attempt(tctx, KVM)
	if err != nil && tctx.Err() != nil {
		err = context.Cause(tctx)
	}
	close(ended)
	cancel(nil)
	if err == nil || ctx.Err() != nil {
		return KVM, err
	}
	if terr := attempt(ctx, TCG); terr != nil {
		// Both fail: the fault isn't KVM's, and nothing is to be remembered.
		return TCG, terr
	}
	failure := &KVMFailure{Err: err}
	// A verdict that can't be kept costs the next machine its deadline, no more.
	_ = b.Memory.Record(key)
	if b.Fallback != nil {
		b.Fallback(failure)
	}
	return TCG, nil
}

func (b *Booter) key() string {
	h := sha256.New()
	for _, s := range []string{b.Host.BootID, b.Host.Release, b.VMM} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Verdicts is the path of the small file that remembers where KVM failed. The
// empty path remembers nothing. Readers and writers need no lock: a file is
// replaced whole, and of two writers the last one wins.
type Verdicts string

// maxVerdicts bounds the file; the oldest go.
const maxVerdicts = 8

// Failed reports whether KVM was recorded as failing under key. A file that
// can't be read or understood has recorded nothing.
func (v Verdicts) Failed(key string) bool {
	keys, _ := v.read()
	for _, k := range keys {
		if k == key {
			return true
		}
	}
	return false
}

// Record remembers that KVM failed under key.
func (v Verdicts) Record(key string) error {
	if v == "" {
		return nil
	}
	keys, err := v.read()
	if err != nil {
		keys = nil // damaged: begin anew
	}
	keys = append(keys, key)
	keys = keys[max(0, len(keys)-maxVerdicts):]
	text, err := json.Marshal(keys)
	if err != nil {
		return fmt.Errorf("recording that KVM failed: %w", err)
	}
	// No fsync: the file need not outlive the host's boot.
	f, err := os.CreateTemp(filepath.Dir(string(v)), filepath.Base(string(v))+".*")
	if err != nil {
		return fmt.Errorf("recording that KVM failed: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), string(v))
	}
	if err != nil {
		return fmt.Errorf("recording that KVM failed: %w", err)
	}
	return nil
}

func (v Verdicts) read() ([]string, error) {
	if v == "" {
		return nil, nil
	}
	f, err := os.Open(string(v))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var keys []string
	if err := json.NewDecoder(io.LimitReader(f, 64<<10)).Decode(&keys); err != nil {
		return nil, err
	}
	return keys, nil
}
