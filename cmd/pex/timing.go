package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"github.com/pexfs/pex/cmd/internal/machine"
)

// timingReport is what --timing writes: one line of JSON, also of a run that failed, as far as it came.
type timingReport struct {
	Image   string        `json:"image"`            // the reference, canonical where it could be opened
	Digest  string        `json:"digest,omitempty"` // of the manifest
	Root    machine.Root  `json:"root,omitempty"`
	VMM     string        `json:"vmm,omitempty"`
	Accel   string        `json:"accel,omitempty"`
	Kernel  string        `json:"kernel,omitempty"` // version
	Status  int           `json:"status"`           // of pex
	Fetched int64         `json:"fetched_bytes"`    // of the image's contents, compressed, since it was opened, for whomever, if the daemon says so
	Total   millis        `json:"total_ms"`         // of all of it
	Stages  []timingStage `json:"stages"`
}

// timingStage is a part of a run. Stages follow upon each other, but for open: a machine may boot meanwhile.
//
//	open     the name resolved, metadata read, until contents can be read
//	launch   supervisor and VMM started, until the machine's processor runs
//	init     the kernel booted, until PID 1 has loaded its modules
//	root     the root mounted
//	start    until the program is handed over: what of open was left, and the host's part
//	program  the program, from there until the end of its output
//	exit     the machine ended, until nothing is left of it
type timingStage struct {
	Name string `json:"stage"`
	At   millis `json:"at_ms"` // since the first one began
	Took millis `json:"ms"`
}

// millis is a time in milliseconds, in JSON with one decimal.
type millis time.Duration

// MarshalJSON is part of json.Marshaler.
func (m millis) MarshalJSON() ([]byte, error) {
	return json.Marshal(math.Round(float64(m)/float64(time.Millisecond)*10) / 10)
}

// timeline is when a run came to its stages; a moment that hasn't come is zero.
type timeline struct {
	begin, opened machine.Instant // of open
	start         machine.Instant // of the machine's supervisor
	machine       machine.Times
	begun, ended  machine.Instant // of the program
	gone          machine.Instant // the machine
}

// stages gives those that were come through.
func (l timeline) stages() []timingStage {
	all := []timingStage{}
	for _, s := range []struct {
		name     string
		from, to machine.Instant
	}{
		{"open", l.begin, l.opened},
		{"launch", l.start, l.machine.Launched},
		{"init", l.machine.Launched, l.machine.Init},
		{"root", l.machine.Init, l.machine.Ready},
		{"start", l.machine.Ready, l.begun},
		{"program", l.begun, l.ended},
		{"exit", l.ended, l.gone},
	} {
		if s.from == 0 || s.to == 0 {
			continue
		}
		all = append(all, timingStage{s.name, millis(s.from.Since(l.begin)), millis(s.to.Since(s.from))})
	}
	return all
}

// timingOutput is where --timing writes to.
type timingOutput struct {
	w    io.Writer // nil: nowhere
	file *os.File  // w, if it is to be closed
}

// openTiming understands --timing: json or json=FILE, or empty.
func openTiming(flag string) (timingOutput, error) {
	format, name, named := strings.Cut(flag, "=")
	switch {
	case flag == "":
		return timingOutput{}, nil
	case format != "json" || named && name == "":
		return timingOutput{}, fmt.Errorf("--timing %s: want json or json=FILE", flag)
	case !named:
		return timingOutput{w: os.Stderr}, nil
	}
	f, err := os.Create(name)
	if err != nil {
		return timingOutput{}, fmt.Errorf("writing --timing: %w", err)
	}
	return timingOutput{f, f}, nil
}

// write writes the report; a failure is a warning, since the run is over.
func (o timingOutput) write(r timingReport) {
	if o.w == nil {
		return
	}
	b, err := json.Marshal(r)
	if err == nil {
		_, err = o.w.Write(append(b, '\n'))
	}
	if o.file != nil {
		if cerr := o.file.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil {
		warn("writing --timing: " + err.Error())
	}
}
