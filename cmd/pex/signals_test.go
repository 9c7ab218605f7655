package main

import (
	"context"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestWatchSignals(t *testing.T) {
	type step struct {
		after time.Duration
		sig   syscall.Signal // 0: the program starts
	}
	start := step{}
	now := func(s syscall.Signal) step { return step{0, s} }
	tests := []struct {
		name      string
		steps     []step
		stuck     bool // the guest takes no signal
		forwarded []syscall.Signal
		killed    syscall.Signal // 0: not
	}{
		{"none", []step{start}, false, nil, 0},
		{"SIGINT before the start", []step{now(syscall.SIGINT)}, false, nil, syscall.SIGINT},
		{"SIGTERM before the start", []step{now(syscall.SIGTERM)}, false, nil, syscall.SIGTERM},
		{"SIGHUP before the start", []step{now(syscall.SIGHUP)}, false, nil, syscall.SIGHUP},
		{"SIGUSR1 before the start", []step{now(syscall.SIGUSR1), start}, false, nil, 0},
		{"forwarded", []step{start, now(syscall.SIGINT), now(syscall.SIGUSR1), now(syscall.SIGHUP)}, false,
			[]syscall.Signal{syscall.SIGINT, syscall.SIGUSR1, syscall.SIGHUP}, 0},
		{"three interrupts", []step{start, now(syscall.SIGINT), {time.Second, syscall.SIGINT}, {time.Second, syscall.SIGINT}}, false,
			[]syscall.Signal{syscall.SIGINT, syscall.SIGINT}, syscall.SIGINT},
		{"three slow interrupts", []step{start, now(syscall.SIGINT), {time.Second, syscall.SIGINT}, {1001 * time.Millisecond, syscall.SIGINT}}, false,
			[]syscall.Signal{syscall.SIGINT, syscall.SIGINT, syscall.SIGINT}, 0},
		{"three interrupts to a stuck guest", []step{start, now(syscall.SIGINT), now(syscall.SIGINT), now(syscall.SIGINT)}, true,
			nil, syscall.SIGINT},
		{"SIGTERM in vain", []step{start, now(syscall.SIGTERM), {10 * time.Second, syscall.SIGUSR2}}, false,
			[]syscall.Signal{syscall.SIGTERM}, syscall.SIGTERM},
		{"SIGTERM heeded", []step{start, now(syscall.SIGTERM), {9 * time.Second, syscall.SIGUSR2}}, false,
			[]syscall.Signal{syscall.SIGTERM, syscall.SIGUSR2}, 0},
		{"a second SIGTERM wins no time", []step{start, now(syscall.SIGTERM), {9 * time.Second, syscall.SIGTERM}, {time.Second, syscall.SIGUSR2}}, false,
			[]syscall.Signal{syscall.SIGTERM, syscall.SIGTERM}, syscall.SIGTERM},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				in := make(chan os.Signal)
				started := make(chan func(syscall.Signal))
				var killed syscall.Signal
				var sent []syscall.Signal
				guest, machine := make(chan syscall.Signal), make(chan struct{})
				done, idle := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(done)
					watchSignals(ctx, in, started, func(i *interruption) { killed = i.sig })
				}()
				go func() {
					defer close(idle)
					for !tt.stuck {
						select {
						case s := <-guest:
							sent = append(sent, s)
						case <-machine:
							return
						}
					}
				}()
				for _, s := range tt.steps {
					time.Sleep(s.after)
					synctest.Wait()
					if s.sig == 0 {
						started <- func(s syscall.Signal) {
							select {
							case guest <- s:
							case <-machine:
							}
						}
						continue
					}
					select {
					case in <- s.sig:
					case <-done:
					}
				}
				synctest.Wait()
				close(machine)
				cancel()
				<-done
				<-idle
				if killed != tt.killed {
					t.Errorf("killed by %d, want %d", killed, tt.killed)
				}
				if diff := cmp.Diff(tt.forwarded, sent); diff != "" {
					t.Errorf("forwarded (-want +got):\n%s", diff)
				}
			})
		})
	}
}
