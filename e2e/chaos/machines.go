package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	machinesTime = 8 * time.Minute // for all that machines do: they hang if it takes longer
	machineRAM   = "256M"
	guestName    = "chaos" // of this program in the image
	guestFolder  = "data"  // that it reads
)

// machine is a running `pex run` whose program is guest.
type machine struct {
	cmd  *exec.Cmd
	in   io.Closer
	out  *bufio.Reader
	errs bytes.Buffer
}

// machines runs many machines at once: from an image that is still filling when they have come up, by virtio-fs and virtio-blk, and from
// the sealed one, by pmem. All must read the same, and what they read of the sealed image must be in memory once.
func machines(ctx context.Context, o options, res *result) error {
	ctx, cancel := context.WithTimeoutCause(ctx, machinesTime, fmt.Errorf("machines take longer than %v", machinesTime))
	defer cancel()
	im, err := machineImage(rand.New(rand.NewPCG(o.seed, 1)), o.scale)
	if err != nil {
		return err
	}
	n := o.machines
	res.Counts["machines"] = n
	return loaded(ctx, o, res, 4<<20, []*image{im}, func(ctx context.Context, l *load) error {
		// the program is there before they are, so that they come up while the registry is silent
		dir, err := l.mount(ctx, im, "--no-fill")
		if err != nil {
			return err
		}
		if err := compare(nil, dir, im.files[len(im.files)-1]); err != nil {
			return err
		}
		if _, err := l.w.do(ctx, "umount", dir); err != nil {
			return err
		}
		l.reg.hush(true)
		filling := func() error {
			all, err := l.w.list(ctx)
			if err == nil && all[l.refs[im]].State != "lazy" {
				err = fmt.Errorf("the image is %s before machines read it", all[l.refs[im]].State)
			}
			l.reg.hush(false)
			return err
		}
		if err := l.boot(ctx, o, res, im, "filling", []string{"virtiofs", "blk"}, n, filling); err != nil {
			return err
		}
		if _, err := l.w.seal(ctx, l.refs[im]); err != nil {
			return err
		}
		return l.boot(ctx, o, res, im, "sealed", []string{"pmem"}, n, func() error { return nil })
	})
}

// machineImage is an image of files, and of this program above them.
func machineImage(rnd *rand.Rand, scale int64) (*image, error) {
	files, err := makeLayer(rnd, guestFolder, 60, 4*scale<<20, true)
	if err != nil {
		return nil, err
	}
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	program, err := layerOf("", []file{{guestName, exe}}, true)
	if err != nil {
		return nil, err
	}
	return makeImage("machines", files, program)
}

// boot runs n machines at once, calls up when all are up, compares what they read, looks at their memory, and ends them.
func (l *load) boot(ctx context.Context, o options, res *result, im *image, state string, roots []string, n int, up func() error) (err error) {
	want := guestDigest(im.files[:len(im.files)-1])
	all := make([]*machine, n)
	defer func() {
		for _, m := range all {
			if m != nil {
				err = errors.Join(err, m.end(ctx))
			}
		}
		if left := l.w.machines(); len(left) > 0 {
			l.w.fault("left over of machines: %v", left)
		}
	}()
	err = together(n, func(i int) (err error) {
		if all[i], err = l.machine(ctx, o, roots[i%len(roots)], l.refs[im]); err != nil {
			return err
		}
		return all[i].says(guestUp)
	})
	if err = errors.Join(err, up()); err != nil {
		return err
	}
	if err = together(n, func(i int) error { return all[i].says(want) }); err != nil {
		return err
	}
	var most memory
	for _, m := range all {
		most.add(memoryOf(m.cmd.Process.Pid))
	}
	const mib = 1 << 20
	res.Counts[state+": MiB of memory of QEMU, RSS and PSS"] = []int64{most.rss / mib, most.pss / mib}
	if state != "sealed" {
		return nil
	}
	res.Counts[state+": MiB of the image in them, RSS and PSS"] = []int64{most.imageRSS / mib, most.imagePSS / mib}
	if size := im.bytes + 4*mib; most.imagePSS > size || most.imageRSS < int64(n)*im.bytes/2 {
		l.w.fault("%d machines have %d KiB of the image in memory and map %d KiB, it has %d", n, most.imagePSS>>10, most.imageRSS>>10, im.bytes>>10)
	}
	return nil
}

// machine starts a machine.
func (l *load) machine(ctx context.Context, o options, root, ref string) (*machine, error) {
	m := &machine{cmd: exec.CommandContext(ctx, filepath.Join(filepath.Dir(o.bin), "pex"),
		"run", "-q", "-i", "--no-profile", "-m", machineRAM, "--root", root, ref, "/"+guestName, guestFlag, "/"+guestFolder)}
	m.cmd.Env = append(slices.Clone(l.w.env), "PEX_KERNEL="+o.kernel)
	m.cmd.Stderr = &m.errs
	m.cmd.Cancel = func() error { return m.cmd.Process.Signal(unix.SIGTERM) }
	m.cmd.WaitDelay = 10 * time.Second
	in, err := m.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	m.in, m.out = in, bufio.NewReader(out)
	return m, m.cmd.Start()
}

// says waits for a line.
func (m *machine) says(want string) error {
	line, err := m.out.ReadString('\n')
	if err != nil {
		return fmt.Errorf("a machine ends before it says %q: %w: %s", want, err, m.errs.Bytes())
	}
	if got := strings.TrimSpace(line); got != want {
		return fmt.Errorf("a machine says %q, want %q", got, want)
	}
	return nil
}

// end has the program end, and waits for the machine.
func (m *machine) end(ctx context.Context) error {
	_ = m.in.Close() // it may be gone
	if err := m.cmd.Wait(); err != nil {
		return errors.Join(fmt.Errorf("a machine ends: %w: %s", err, m.errs.Bytes()), context.Cause(ctx))
	}
	return nil
}

// machines are the processes of this world that run machines.
func (w *world) machines() []process {
	return slices.DeleteFunc(processes(), func(p process) bool {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.pid))
		ours := slices.Contains(strings.Split(string(env), "\x00"), "PEX_CACHE_DIR="+w.cache)
		return err != nil || !ours || p.program() == "pexfs"
	})
}

// memory is what processes have of it, in bytes: RSS counts what they share for each of them, PSS once.
type memory struct{ rss, pss, imageRSS, imagePSS int64 }

func (m *memory) add(o memory) {
	m.rss, m.pss = m.rss+o.rss, m.pss+o.pss
	m.imageRSS, m.imagePSS = m.imageRSS+o.imageRSS, m.imagePSS+o.imagePSS
}

// memoryOf looks at the QEMU of a `pex run`.
func memoryOf(run int) (m memory) {
	for _, p := range descendants(run) {
		if !strings.HasPrefix(p.program(), "qemu") {
			continue
		}
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", p.pid))
		image := false
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			var rss, pss int64
			switch {
			case len(f) < 2:
			case !strings.HasSuffix(f[0], ":"): // another mapping begins
				image = strings.HasSuffix(f[len(f)-1], "/image.erofs")
			case f[0] == "Rss:":
				rss = kib(f[1])
			case f[0] == "Pss:":
				pss = kib(f[1])
			}
			m.rss, m.pss = m.rss+rss, m.pss+pss
			if image {
				m.imageRSS, m.imagePSS = m.imageRSS+rss, m.imagePSS+pss
			}
		}
	}
	return m
}
