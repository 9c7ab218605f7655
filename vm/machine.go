package vm

import (
	"net"
	"time"
)

// Cause says why a machine ended.
type Cause int

// The causes.
const (
	Crashed  Cause = iota // the VMM failed, or nobody knows
	PowerOff              // the guest switched itself off
	Reset                 // the guest rebooted, as a kernel panic makes it
	Killed                // the context of Start ended
)

func (c Cause) String() string {
	switch c {
	case PowerOff:
		return "power-off"
	case Reset:
		return "reset"
	case Killed:
		return "killed"
	}
	return "crashed"
}

// Exit says how a machine ended.
type Exit struct {
	Cause  Cause
	Err    error         // what the VMM's process ended with, if not with status 0
	Stderr string        // the end of what the VMM itself had to say
	CPU    time.Duration // processor time of the VMM's process, the guest's included
}

// Machine is a running machine. Its methods are safe for concurrent use.
type Machine struct {
	port *net.UnixConn
	proc *Process
	done chan struct{}
	exit Exit
}

// NewMachine makes a machine of a VMM's process and the host's end of its port.
// When the process has ended, cause is called once to tell what the VMM's own
// control channel said of it; it isn't asked if the process was killed.
func NewMachine(p *Process, port *net.UnixConn, cause func() Cause) *Machine {
	m := &Machine{port: port, proc: p, done: make(chan struct{})}
	go func() {
		err := p.Wait()
		m.exit = Exit{Err: err, Stderr: p.Stderr(), CPU: p.CPU()}
		if said := cause(); p.WasKilled() {
			m.exit.Cause = Killed
		} else if err == nil {
			m.exit.Cause = said
		}
		close(m.done)
	}()
	return m
}

// Port is the stream to and from PID 1. It ends with the machine; whatever the
// guest wrote before can still be read. The caller closes it.
func (m *Machine) Port() *net.UnixConn { return m.port }

// Kill ends the machine at once. It doesn't wait.
func (m *Machine) Kill() { m.proc.Kill() }

// Done is closed when nothing of the machine is left.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Wait waits for Done.
func (m *Machine) Wait() Exit {
	<-m.done
	return m.exit
}
