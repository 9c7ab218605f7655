package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// gate is a way to a registry that can be shut: whoever comes is let in, and nothing goes through any more, of answers that are under way either.
type gate struct {
	l  net.Listener
	to string

	mu     sync.Mutex // guards what follows
	shut   bool
	opened chan struct{} // closed when it is opened
}

func newGate(to string) (*gate, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	g := &gate{l: l, to: to, opened: make(chan struct{})}
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go g.pass(c)
		}
	}()
	return g, nil
}

// pass connects one who has come with the registry, until either ends.
func (g *gate) pass(c net.Conn) {
	defer c.Close()
	there, err := net.Dial("tcp", g.to)
	if err != nil {
		return
	}
	defer there.Close()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{c, there}, {there, c}} {
		both.Go(func() {
			buf := make([]byte, piece)
			for {
				n, err := way[0].Read(buf)
				g.wait()
				if n > 0 && err == nil {
					_, err = way[1].Write(buf[:n])
				}
				if err != nil {
					c.Close()
					there.Close()
					return
				}
			}
		})
	}
	both.Wait()
}

// wait waits while the gate is shut.
func (g *gate) wait() {
	g.mu.Lock()
	shut, opened := g.shut, g.opened
	g.mu.Unlock()
	if shut {
		<-opened
	}
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut && !shut {
		close(g.opened)
		g.opened = make(chan struct{})
	}
	g.shut = shut
}

// silent is a mount whose registry goes silent.
type silent struct {
	name     string
	deadline time.Duration // of its reads
	flags    []string
	im       *image
	dir      string

	read, failed int
	longest      time.Duration // that a read took
}

// silence has a registry say nothing for a minute, in the midst of answers. Readers get right bytes or EIO, each within his deadline; afterwards
// all can be read, and what was being filled is, by itself.
func silence(ctx context.Context, o options, res *result) (err error) {
	const slack = 30 * time.Second // for a busy machine: who waits longer hangs
	images, err := someImages(rand.New(rand.NewPCG(o.seed, 1)), 2*o.scale)
	if err != nil {
		return err
	}
	reg, err := serve(1 << 20)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reg.close()) }()
	g, err := newGate(reg.addr)
	if err != nil {
		return err
	}
	defer func() { g.set(false); err = errors.Join(err, g.l.Close()) }()
	w, err := newWorld(o.bin)
	if err != nil {
		return err
	}
	defer func() {
		res.Wrong = append(res.Wrong, w.faults()...)
		err = errors.Join(err, w.end())
	}()
	mounts := []*silent{
		{name: "patient", deadline: time.Minute, im: images[0], flags: []string{"--no-fill"}},
		{name: "hasty", deadline: 10 * time.Second, im: images[1], flags: []string{"--no-fill", "--io-timeout", "10s"}},
		{name: "filling", deadline: time.Minute, im: images[4]},
	}
	for _, m := range mounts {
		reg.add(m.im)
		m.dir = filepath.Join(w.dir, "mnt", m.name)
		if err := os.Mkdir(m.dir, 0o700); err != nil {
			return err
		}
		ref := g.l.Addr().String() + "/" + m.im.name + ":1"
		if _, err := w.do(ctx, append(append([]string{"mount", "-q", "--no-profile"}, m.flags...), ref, m.dir)...); err != nil {
			return err
		}
	}
	var readers sync.WaitGroup
	for _, m := range mounts[:2] {
		readers.Go(func() { m.readOn(w) })
	}
	for before := reg.counted().Sent; reg.counted().Sent < before+256<<10 && ctx.Err() == nil; {
		rest(ctx, 10*time.Millisecond)
	}
	g.set(true)
	rest(ctx, o.silence)
	g.set(false)
	readers.Wait()
	for _, m := range mounts {
		res.Counts[m.name+": files read, and not"] = []int{m.read, m.failed}
		res.Counts[m.name+": seconds that a read took, at most"] = int(m.longest.Seconds())
		if m.longest > m.deadline+slack {
			w.fault("%s: a read took %v, its deadline is %v", m.name, m.longest, m.deadline)
		}
	}
	rest(ctx, 2*time.Second) // what has failed is known for a moment
	for _, m := range mounts {
		if err := compareAll(ctx, m.dir, m.im); err != nil {
			w.fault("%s, when it was over: %v", m.name, err)
		}
	}
	for i := 0; ; i++ { // nobody asks for it
		all, err := w.list(ctx)
		if err != nil {
			return err
		}
		if all[g.l.Addr().String()+"/"+mounts[2].im.name+":1"].State == "sealed" {
			break
		}
		if i == 90 || ctx.Err() != nil {
			w.fault("what was being filled is not sealed: %+v", all)
			break
		}
		rest(ctx, time.Second)
	}
	for _, m := range mounts {
		if _, err := w.do(ctx, "umount", m.dir); err != nil {
			return err
		}
	}
	w.settle(ctx)
	return nil
}

// readOn reads all files, one after the other, whatever becomes of it.
func (m *silent) readOn(w *world) {
	for _, f := range m.im.files {
		at := time.Now()
		err := compare(nil, m.dir, f)
		m.longest = max(m.longest, time.Since(at))
		switch {
		case err == nil:
			m.read++
		case errors.Is(err, syscall.EIO):
			m.failed++
		default:
			w.fault("%s, during a silence: %v", m.name, err)
			return
		}
	}
}
