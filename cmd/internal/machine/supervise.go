package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pexfs/pex/vm"
	"github.com/pexfs/pex/vm/guest"
)

// The descriptors that a supervisor inherits.
const (
	controlFD = 3
	framesFD  = 4
)

const (
	consoleSize  = 64 << 10 // of the console that is kept, in bytes
	consoleLines = 15       // of it that are shown when a machine ends badly
	exitGrace    = 5 * time.Second
)

// VMM is a monitor that a supervisor uses. Its identity changes with its version.
type VMM interface {
	vm.VMM
	Identity() string
}

// Supervisor is how a supervisor sees its host.
type Supervisor struct {
	Name string                               // of the VMM, for people
	Find func(console io.Writer) (VMM, error) // finds the VMM, whose guests' console goes to console
	Open OpenImage
	Host vm.Host
}

// errDetached ends a machine that nobody is attached to any more.
var errDetached = errors.New("the attached process has gone")

// Run runs the machine that the process at the other end of the inherited
// sockets asks for, and returns when nothing is left of it.
func (s *Supervisor) Run(ctx context.Context) error {
	control, err := fileConn(os.NewFile(controlFD, "control"))
	if err != nil {
		return fmt.Errorf("supervising machine: %w", err)
	}
	defer control.Close()
	frames, err := fileConn(os.NewFile(framesFD, "frames"))
	if err != nil {
		return fmt.Errorf("supervising machine: %w", err)
	}
	defer frames.Close()
	s.serve(ctx, control, frames)
	return nil
}

// serve runs one machine for the process behind control and frames.
func (s *Supervisor) serve(ctx context.Context, control, frames net.Conn) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &run{s: s, frames: frames, events: json.NewEncoder(control), console: vm.NewTail(consoleSize)}
	r.log = newWarner(r.say)
	requests := json.NewDecoder(control)
	if err := requests.Decode(&r.config); err != nil {
		return // nobody is left to be told
	}
	named := make(chan json.RawMessage, 1)
	if r.config.Image != nil {
		named <- r.config.Image
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		var late Late
		if r.config.Image == nil && requests.Decode(&late) == nil {
			named <- late.Image
		}
		io.Copy(io.Discard, control)
		cancel(errDetached)
	}()
	if err := r.machine(ctx, cancel, named); ctx.Err() == nil {
		r.say(Event{Ended: r.ended(err)})
	}
	// What was said stays readable; the watcher ends.
	control.SetReadDeadline(time.Unix(1, 0))
	<-watched
}

// run is one machine.
type run struct {
	s       *Supervisor
	config  Config
	frames  net.Conn
	console *vm.Tail
	log     slog.Handler

	mu     sync.Mutex // over events; held while sending
	events *json.Encoder
}

// say tells the attached process; if it has gone, that shows elsewhere.
func (r *run) say(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.events.Encode(e)
}

func (r *run) ended(err error) *Ended {
	var e *EndedError
	if errors.As(err, &e) {
		return &e.Ended
	}
	return &Ended{Error: err.Error(), Console: r.console.Lines(consoleLines)}
}

// machine runs a machine to its end and says why it ended. When it returns, nothing
// of the machine is left. Its image comes out of named.
func (r *run) machine(ctx context.Context, detach context.CancelCauseFunc, named <-chan json.RawMessage) error {
	var console io.Writer = r.console
	if r.config.Root == Verity {
		console = newDamageWatch(console, r.config.Ref, slog.New(r.log))
	}
	vmm, err := r.s.Find(console)
	if err != nil {
		return err
	}
	image := open(ctx, r.s.Open, named, func(text string) { slog.New(r.log).Warn(text) })
	defer image.close()
	root := Block
	if r.config.Image != nil {
		if root, err = r.root(ctx, image); err != nil {
			return err
		}
	} else if r.config.Root != Block {
		return fmt.Errorf("a machine's image must be known at its start, but for root %s: its root is %s", Block, r.config.Root)
	}
	var b *booted
	booter := vm.Booter{
		From: image.done,
		Host: r.s.Host, Memory: vm.Verdicts(r.config.Verdicts), VMM: vmm.Identity(),
		Fallback: func(f *vm.KVMFailure) {
			r.say(Event{Warning: fmt.Sprintf("KVM does not work here (%v): the processor is emulated, which is slower", f.Err)})
		},
	}
	accel, err := booter.Boot(ctx, func(wait context.Context, a vm.Accel) (err error) {
		b, err = r.boot(ctx, wait, vmm, image, root, a)
		return err
	})
	if err != nil {
		return err
	}
	defer b.end()
	<-image.done // a root is mounted, so it has been opened
	r.say(Event{Started: &Started{VMM: r.s.Name, Accel: accel, Root: root, Times: b.times}})
	return r.relay(ctx, detach, b)
}

// root chooses the root of an image that is known at the machine's start.
func (r *run) root(ctx context.Context, o *opening) (Root, error) {
	image, err := o.wait(ctx)
	if err != nil {
		return "", err
	}
	return chooseRoot(r.config.Root, image.Complete(), image.Size(), r.config.Memory)
}

// booted is a machine whose guest has said READY or FAIL.
type booted struct {
	m     *vm.Machine
	guest *guest.Conn
	first []guest.Frame // what it has said so far
	life  context.Context
	kill  context.CancelCauseFunc
	root  *rootfs
	times Times
}

// end ends the machine and waits for all that belongs to it.
func (b *booted) end() {
	b.kill(nil)
	if b.m != nil {
		b.m.Wait()
		b.m.Port().Close()
	}
	b.root.close()
}

// boot starts a machine and waits, until wait ends, for its guest. The machine
// lives until ctx ends.
func (r *run) boot(ctx, wait context.Context, vmm VMM, image *opening, root Root, a vm.Accel) (_ *booted, err error) {
	b := &booted{times: Times{Start: Now()}}
	b.life, b.kill = context.WithCancelCause(ctx)
	defer func() {
		if err != nil {
			b.end()
		}
	}()
	stop := context.AfterFunc(wait, func() { b.kill(context.Cause(wait)) })
	defer stop()
	if b.root, err = r.serve(b, image, root); err != nil {
		return nil, err
	}
	b.m, err = vmm.Start(b.life, vm.Spec{
		Accel: a, VCPUs: r.config.VCPUs, Memory: r.config.Memory,
		Kernel: r.config.Kernel, Initrd: r.config.Initrds[root].Path,
		Cmdline: slices.Concat(r.config.Cmdline, b.root.params),
		Rootfs:  b.root.device,
	})
	b.root.started()
	if err != nil {
		return nil, b.why(err)
	}
	b.times.Launched = Now()
	port := b.m.Port()
	b.guest = guest.NewConn(struct {
		io.Reader
		io.Writer
	}{bufio.NewReaderSize(port, guest.MaxPayload), port})
	for i, want := range [][]guest.Type{{guest.TypeHello}, {guest.TypeReady, guest.TypeFail}} {
		f, err := b.guest.ReadFrame()
		*[]*Instant{&b.times.Init, &b.times.Ready}[i] = Now()
		if err != nil {
			return nil, r.finish(b, fmt.Errorf("waiting for the guest: %w", err))
		}
		if f.Type != want[0] && f.Type != want[len(want)-1] {
			return nil, fmt.Errorf("waiting for the guest: %w: %s instead of %s", guest.ErrProtocol, f.Type, want[0])
		}
		f.Payload = append([]byte(nil), f.Payload...)
		b.first = append(b.first, f)
	}
	return b, nil
}

// serve makes the image the root of a machine.
func (r *run) serve(b *booted, o *opening, root Root) (*rootfs, error) {
	log := slog.New(r.log)
	patient := func(image Image) Image { return newPatient(image, r.config.Ref, r.config.IOTimeout, b.kill, log) }
	select {
	case <-o.done:
		if o.err != nil {
			return nil, o.err
		}
		return serveRoot(b.life, b.kill, patient(o.image), root, log)
	default:
		return serveLate(b.life, b.kill, o, patient, log)
	}
}

// why is what ended the machine's life, err if nothing did.
func (b *booted) why(err error) error {
	if b.life.Err() != nil {
		return context.Cause(b.life)
	}
	return err
}

// finish says why the machine ended, once its port has with err.
func (r *run) finish(b *booted, err error) error {
	if errors.Is(err, guest.ErrProtocol) {
		return err
	}
	t := time.NewTimer(exitGrace)
	defer t.Stop()
	select {
	case <-b.m.Done():
	case <-t.C:
		return b.why(err)
	}
	exit := b.m.Wait()
	switch exit.Cause {
	case vm.PowerOff:
		err = errors.New("the machine was switched off from inside")
	case vm.Reset:
		err = errors.New(resetReason(r.console))
	default:
		words := []string{"the machine monitor ended"}
		if exit.Err != nil {
			words = append(words, exit.Err.Error())
		}
		if s := strings.TrimSpace(exit.Stderr); s != "" {
			words = append(words, s)
		}
		err = errors.New(strings.Join(words, ": "))
	}
	return b.why(err)
}

// relay passes frames both ways until the machine ends, and says why it did. The
// end of the attached process's frames is the machine's.
func (r *run) relay(ctx context.Context, detach context.CancelCauseFunc, b *booted) error {
	attached := guest.NewConn(struct {
		io.Reader
		io.Writer
	}{bufio.NewReaderSize(r.frames, guest.MaxPayload), r.frames})
	ending, down := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(down)
		for {
			f, err := attached.ReadFrame()
			if err != nil {
				select {
				case <-ending:
				default:
					detach(errDetached)
				}
				return
			}
			if err := b.guest.WriteFrame(f); err != nil {
				return // the machine is ending
			}
		}
	}()
	defer func() {
		// The goroutine waits for the attached process or for the guest.
		close(ending)
		r.frames.SetReadDeadline(time.Unix(1, 0))
		b.m.Port().SetWriteDeadline(time.Unix(1, 0))
		<-down
	}()
	for _, f := range b.first {
		if err := attached.WriteFrame(f); err != nil {
			return errDetached
		}
	}
	for {
		f, err := b.guest.ReadFrame()
		if err != nil {
			return r.finish(b, fmt.Errorf("reading from the guest: %w", err))
		}
		if err := attached.WriteFrame(f); err != nil {
			return errDetached
		}
	}
}

// resetReason says why a kernel reset its machine, as far as its console tells.
func resetReason(console *vm.Tail) string {
	const panicked = "Kernel panic - not syncing: "
	for _, line := range slices.Backward(console.Lines(consoleSize)) {
		if _, why, ok := strings.Cut(line, panicked); ok {
			return "the machine's kernel panicked: " + why
		}
	}
	return "the machine was rebooted from inside"
}
