package main

import (
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// queue is how long packets may wait for a link that is busy; what would wait longer is dropped.
const queue = 100 * time.Millisecond

// tunnel joins two TUN devices by a link with delay and rate: not every kernel has sch_netem.
type tunnel struct{ server, client *os.File }

func newTunnel(serverName, clientName string, ns *netns, spec linkSpec) (*tunnel, error) {
	server, err := openTUN(serverName)
	if err != nil {
		return nil, err
	}
	t := &tunnel{server: server}
	if err := ns.do(func() (err error) { t.client, err = openTUN(clientName); return err }); err != nil {
		_ = server.Close()
		return nil, err
	}
	carry(t.server, t.client, spec)
	carry(t.client, t.server, spec)
	return t, nil
}

// openTUN makes a TUN device in the calling thread's network namespace.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("making the device %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// carry brings packets from one device to the other, in order, until the process ends: each leaves when those before it have passed at the
// link's rate, and arrives half a round trip later.
func carry(from, to *os.File, spec linkSpec) {
	type packet struct {
		b   []byte
		due time.Time
	}
	way := make(chan packet, 1<<16)
	go func() {
		defer close(way)
		var free time.Time // when the link has passed what it was given
		buf := make([]byte, 1<<16)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			now := time.Now()
			if free.Before(now) {
				free = now
			}
			if free.Sub(now) > queue {
				continue
			}
			free = free.Add(time.Duration(float64(8*n) / spec.mbit * 1e3))
			way <- packet{append([]byte(nil), buf[:n]...), free.Add(spec.rtt / 2)}
		}
	}()
	go func() {
		runtime.LockOSThread() // it sleeps by the kernel's timers: the runtime's are less exact
		for p := range way {
			if d := time.Until(p.due); d > 0 {
				ts := unix.NsecToTimespec(int64(d))
				_ = unix.Nanosleep(&ts, nil) // awoken early, the packet comes early
			}
			if _, err := to.Write(p.b); err != nil {
				continue // a packet that the other end refuses is lost
			}
		}
	}()
}
