package main

import (
	"context"
	"os"
	"sync"
	"syscall"
	"time"
)

// How a user gets rid of a program that doesn't heed signals.
const (
	killInterrupts = 3                // so many SIGINT
	killWithin     = 2 * time.Second  // in so much time, or
	killGrace      = 10 * time.Second // a SIGTERM and so much time
)

// forwarded are the signals that a program gets when pex gets them.
var forwarded = []os.Signal{
	syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2,
}

// watchSignals decides, until ctx ends, what becomes of the signals from in. Before
// a program comes from started, one that ends processes ends the run: kill is told
// which. Afterwards they go to the program, until the user's patience has ended.
//
// Forwarding may wait for the guest for as long as it likes: signals that find
// others still waiting are counted all the same. It must end with the machine,
// for watchSignals waits for it.
func watchSignals(ctx context.Context, in <-chan os.Signal, started <-chan func(syscall.Signal), kill func(*interruption)) {
	forward := make(chan syscall.Signal, 16)
	forwarding := false
	var forwarder sync.WaitGroup
	defer forwarder.Wait()
	defer close(forward)
	var interrupts []time.Time
	var grace <-chan time.Time
	for {
		select {
		case send := <-started:
			forwarding = true
			forwarder.Go(func() {
				for s := range forward {
					send(s)
				}
			})
		case s := <-in:
			sig := s.(syscall.Signal)
			if !forwarding {
				if sig == syscall.SIGUSR1 || sig == syscall.SIGUSR2 {
					continue
				}
				kill(&interruption{sig})
				return
			}
			switch sig {
			case syscall.SIGINT:
				interrupts = append(interrupts, time.Now())
				if n := len(interrupts); n >= killInterrupts && interrupts[n-1].Sub(interrupts[n-killInterrupts]) <= killWithin {
					kill(&interruption{sig})
					return
				}
			case syscall.SIGTERM:
				if grace == nil {
					grace = time.After(killGrace)
				}
			}
			select {
			case forward <- sig:
			default:
			}
		case <-grace:
			kill(&interruption{syscall.SIGTERM})
			return
		case <-ctx.Done():
			return
		}
	}
}
