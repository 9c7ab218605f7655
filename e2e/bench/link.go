package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// linkSpec is a link between the registry and who pulls from it.
type linkSpec struct {
	name string
	rtt  time.Duration
	mbit float64 // 0: as fast as the machine is
}

// local is the link without delay and limit.
var local = linkSpec{name: "0ms"}

// slow are the links that cold starts are measured over, besides local; the first one is what the goals are about.
func slow() []linkSpec {
	return []linkSpec{
		{"20ms-200Mbit", 20 * time.Millisecond, 200},
		{"5ms-1Gbit", 5 * time.Millisecond, 1000},
		{"50ms-100Mbit", 50 * time.Millisecond, 100},
	}
}

// link joins this process's network namespace, where the registry is, and a client's.
type link struct {
	linkSpec
	client *netns
	server string // the registry's address, as the client sees it
	device string // the client's
	tun    *tunnel
}

// newLink makes the n-th link, with addresses of its own.
func newLink(spec linkSpec, n int) (*link, error) {
	ns, err := newNetns()
	if err != nil {
		return nil, err
	}
	l := &link{linkSpec: spec, client: ns, server: fmt.Sprintf("10.9.%d.2", n), device: "client"}
	own := fmt.Sprintf("server%d", n)
	if spec.rtt == 0 && spec.mbit == 0 {
		err = configure([][]string{
			{"ip", "link", "add", own, "type", "veth", "peer", "name", l.device},
			{"ip", "link", "set", l.device, "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.f.Fd())},
		})
	} else {
		l.tun, err = newTunnel(own, l.device, ns, spec)
	}
	if err == nil {
		err = up(own, l.server)
	}
	if err == nil {
		err = ns.do(func() error { return up(l.device, fmt.Sprintf("10.9.%d.1", n)) })
	}
	if err != nil {
		return nil, fmt.Errorf("making the link %s: %w", spec.name, err)
	}
	return l, nil
}

// up gives a device of the calling thread's namespace its address. What one connection learned of the link must not help another one.
func up(device, address string) error {
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_no_metrics_save", []byte("1"), 0); err != nil {
		return err
	}
	return configure([][]string{
		{"ip", "link", "set", "lo", "up"},
		{"ip", "address", "add", address + "/30", "dev", device},
		{"ip", "link", "set", device, "up", "txqueuelen", "10000"},
	})
}

// received counts the bytes of the packets that came to the client.
func (l *link) received() (n int64, err error) {
	err = l.client.do(func() error {
		f, err := os.Open("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if rest, ok := strings.CutPrefix(strings.TrimSpace(s.Text()), l.device+":"); ok {
				_, err := fmt.Sscan(rest, &n)
				return err
			}
		}
		return fmt.Errorf("there is no device %s", l.device)
	})
	return n, err
}

// netns is a network namespace. It goes with this process.
type netns struct{ f *os.File }

func newNetns() (*netns, error) {
	ns := new(netns)
	err := onThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		ns.f, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return ns, err
}

// do runs f on a thread in the namespace; processes that f starts are in it too.
func (ns *netns) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.f.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering a network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}
