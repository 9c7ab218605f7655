package vhostuser

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A waiter sleeps until a guest kicks or wake is called. Everything is watched edge triggered: each write to an
// eventfd wakes once, and nothing is read, so that a descriptor shared with the front end never needs O_NONBLOCK
// changed and a read cannot be lost to the front end.
type waiter struct {
	epoll int
	event int // eventfd of wake
}

func newWaiter() (*waiter, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making epoll: %w", err)
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epoll)
		return nil, fmt.Errorf("making eventfd: %w", err)
	}
	w := &waiter{epoll, event}
	if err := w.watch(event); err != nil {
		w.close()
		return nil, fmt.Errorf("watching eventfd: %w", err)
	}
	return w, nil
}

// watch adds a descriptor. If it is readable already, that wakes too.
func (w *waiter) watch(fd int) error {
	return unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)})
}

// unwatch removes a descriptor. It must be called before the descriptor is closed: the front end's copy would keep it
// watched.
func (w *waiter) unwatch(fd int) {
	_ = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, fd, nil)
}

// wake ends the present or the next wait.
func (w *waiter) wake() { signal(w.event) }

// wait sleeps until something has happened since the last call.
func (w *waiter) wait() error {
	var ev [4]unix.EpollEvent
	for {
		_, err := unix.EpollWait(w.epoll, ev[:], -1)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (w *waiter) close() {
	unix.Close(w.event)
	unix.Close(w.epoll)
}
