//go:build linux

package main

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// ended is how a child ended.
type ended struct {
	status unix.WaitStatus
	usage  unix.Rusage
}

// reaper waits for all children, those of others that became ours too.
type reaper struct {
	mu       sync.Mutex // over what follows; not held while forking
	waiting  map[int]chan<- ended
	starting int           // calls of start that don't know their pid yet
	early    map[int]ended // children that ended meanwhile
}

// newReaper starts reaping whenever sig says that a child has ended, until sig is closed. There must be only one at a
// time.
func newReaper(sig <-chan os.Signal) *reaper {
	r := &reaper{waiting: make(map[int]chan<- ended), early: make(map[int]ended)}
	go func() {
		for range sig {
			r.reap()
		}
	}()
	return r
}

// reap collects every child that has ended: one signal may stand for several.
func (r *reaper) reap() {
	for {
		var e ended
		pid, err := unix.Wait4(-1, &e.status, unix.WNOHANG, &e.usage)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		r.mu.Lock()
		if c, ok := r.waiting[pid]; ok {
			delete(r.waiting, pid)
			c <- e // never blocks
		} else if r.starting > 0 {
			r.early[pid] = e
		}
		r.mu.Unlock()
	}
}

// start calls fork and returns the pid it gives and where the end of that child will be told.
func (r *reaper) start(fork func() (int, error)) (int, <-chan ended, error) {
	r.mu.Lock()
	r.starting++
	r.mu.Unlock()
	pid, err := fork()
	r.mu.Lock()
	defer r.mu.Unlock()
	c := make(chan ended, 1)
	if err == nil {
		if e, ok := r.early[pid]; ok {
			c <- e
		} else {
			r.waiting[pid] = c
		}
	}
	if r.starting--; r.starting == 0 {
		clear(r.early)
	}
	return pid, c, err
}
