package guest

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// MaxStart is the largest encoded Process, in bytes. Linux itself takes about 2 MiB of arguments and environment.
const MaxStart = 4 << 20

// maxText is where text that comes from a guest is cut off, in bytes.
const maxText = 4 << 10

// Hello says who speaks. A host compares both values with its own before anything else.
type Hello struct {
	// Protocol is the Version the guest was built with.
	Protocol int `json:"protocol"`
	// Build is the key of the boot archive the guest runs from.
	Build string `json:"build"`
}

// Ready says what the machine has become.
type Ready struct {
	// Root is how the root is attached: "virtiofs", "pmem" or "blk".
	Root string `json:"root"`
	// DAX tells that file data of the root is read without the guest's page cache.
	DAX bool `json:"dax,omitempty"`
	// Uptime is the time since the guest's kernel started, by its own clock.
	Uptime time.Duration `json:"uptime_ns"`
	// Warnings are things that went wrong without stopping the machine.
	Warnings []string `json:"warnings,omitempty"`
}

// Size is a terminal's, in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Process is a program to run in the guest. All strings may hold any byte but NUL.
type Process struct {
	// Args is the program and its arguments. A name without a slash is looked for in PATH, as Env has it.
	Args []string
	// Env is the environment, "NAME=value" each. The guest adds PATH, HOME, HOSTNAME and, on a terminal, TERM where
	// they are missing.
	Env []string
	// Dir is the working directory, made if it is missing; "" is "/".
	Dir string
	// User is "name", "uid", "name:group", "uid:gid" or a mixture, looked up in the image; "" is root.
	User string
	// Stdin tells that the program's standard input comes from the host; else it is empty.
	Stdin bool
	// Terminal, if set, gives the program a terminal of this size. Standard error is the terminal then too.
	Terminal *Size
}

// wireProcess is Process in START. Bytes, because JSON's strings would lose what isn't UTF-8.
type wireProcess struct {
	Args     [][]byte `json:"args"`
	Env      [][]byte `json:"env,omitempty"`
	Dir      []byte   `json:"dir,omitempty"`
	User     []byte   `json:"user,omitempty"`
	Stdin    bool     `json:"stdin,omitempty"`
	Terminal *Size    `json:"terminal,omitempty"`
}

func (p Process) encode() ([]byte, error) {
	if len(p.Args) == 0 {
		return nil, fmt.Errorf("encoding process: no program given")
	}
	w := wireProcess{Dir: []byte(p.Dir), User: []byte(p.User), Stdin: p.Stdin, Terminal: p.Terminal}
	for _, s := range p.Args {
		w.Args = append(w.Args, []byte(s))
	}
	for _, s := range p.Env {
		w.Env = append(w.Env, []byte(s))
	}
	for _, list := range [][]string{p.Args, p.Env, {p.Dir, p.User}} {
		for _, s := range list {
			if strings.IndexByte(s, 0) >= 0 {
				return nil, fmt.Errorf("encoding process: NUL in %q", s)
			}
		}
	}
	b, err := json.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encoding process: %w", err)
	}
	if len(b) > MaxStart {
		return nil, fmt.Errorf("encoding process: arguments and environment too long: %d bytes, at most %d", len(b), MaxStart)
	}
	return b, nil
}

func decodeProcess(b []byte) (Process, error) {
	var w wireProcess
	if err := json.Unmarshal(b, &w); err != nil {
		return Process{}, fmt.Errorf("%w: decoding START: %w", ErrProtocol, err)
	}
	if len(w.Args) == 0 {
		return Process{}, fmt.Errorf("%w: START without a program", ErrProtocol)
	}
	p := Process{Dir: string(w.Dir), User: string(w.User), Stdin: w.Stdin, Terminal: w.Terminal}
	for _, s := range w.Args {
		p.Args = append(p.Args, string(s))
	}
	for _, s := range w.Env {
		p.Env = append(p.Env, string(s))
	}
	return p, nil
}

// Kind tells why a program could not be run.
type Kind string

// The kinds of Exit. What they are worth as an exit status is docker's rule.
const (
	// Ran: the program ran; Code and Signal are its own.
	Ran Kind = ""
	// NotFound: there is no such program, or not its interpreter (127).
	NotFound Kind = "not-found"
	// NotExecutable: it is there but can't be run: permission, format, a directory (126).
	NotExecutable Kind = "not-executable"
	// Refused: the guest could not do what START asked for, such as an unknown user (125).
	Refused Kind = "refused"
)

// Exit is the end of a process.
type Exit struct {
	// Code is the status a shell would give, 0 to 255: the program's own, 128 and the signal's number, or 125 to 127 as
	// Kind says.
	Code int `json:"code"`
	// Signal is the number of the signal that killed the program, or 0.
	Signal int  `json:"signal,omitempty"`
	Kind   Kind `json:"kind,omitempty"`
	// Message says what went wrong, if Kind isn't Ran.
	Message string `json:"message,omitempty"`
	// OOM tells that the guest ran out of memory while the program ran, and its kernel killed something.
	OOM   bool  `json:"oom,omitempty"`
	Usage Usage `json:"usage"`
}

// Usage is what a program and the children it waited for used, by the guest's account.
type Usage struct {
	Elapsed time.Duration `json:"elapsed_ns"`
	User    time.Duration `json:"user_ns"`
	System  time.Duration `json:"system_ns"`
	// MaxRSS is the largest resident set of one process, in bytes.
	MaxRSS      int64 `json:"max_rss"`
	MajorFaults int64 `json:"major_faults"`
	MinorFaults int64 `json:"minor_faults"`
}

func decodeExit(b []byte) (Exit, error) {
	var e Exit
	if err := json.Unmarshal(b, &e); err != nil {
		return Exit{}, fmt.Errorf("%w: decoding EXIT: %w", ErrProtocol, err)
	}
	switch {
	case e.Code < 0 || e.Code > 255:
		return Exit{}, fmt.Errorf("%w: exit code %d", ErrProtocol, e.Code)
	case e.Signal < 0 || e.Signal > 64:
		return Exit{}, fmt.Errorf("%w: exit by signal %d", ErrProtocol, e.Signal)
	}
	switch e.Kind {
	case Ran, NotFound, NotExecutable, Refused:
	default:
		return Exit{}, fmt.Errorf("%w: unknown kind of exit", ErrProtocol)
	}
	e.Message = printable(e.Message)
	return e, nil
}

func decodeHello(b []byte) (Hello, error) {
	var h Hello
	if err := json.Unmarshal(b, &h); err != nil {
		return Hello{}, fmt.Errorf("%w: decoding HELLO: %w", ErrProtocol, err)
	}
	h.Build = printable(h.Build)
	return h, nil
}

func decodeReady(b []byte) (Ready, error) {
	var r Ready
	if err := json.Unmarshal(b, &r); err != nil {
		return Ready{}, fmt.Errorf("%w: decoding READY: %w", ErrProtocol, err)
	}
	r.Root = printable(r.Root)
	for i, s := range r.Warnings {
		r.Warnings[i] = printable(s)
	}
	return r, nil
}

// printable makes a guest's text fit for a terminal and a log.
func printable(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r == utf8.RuneError || !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, s)
}

// stream names one of a process's streams in WINDOW.
type stream uint8

const (
	stdin stream = iota
	stdout
	stderr
)

func encodeWindow(s stream, n int) []byte {
	return binary.LittleEndian.AppendUint32([]byte{byte(s)}, uint32(n))
}

func decodeWindow(b []byte) (stream, int, error) {
	if len(b) != 5 || b[0] > byte(stderr) {
		return 0, 0, fmt.Errorf("%w: malformed WINDOW", ErrProtocol)
	}
	n := binary.LittleEndian.Uint32(b[1:])
	if n == 0 || n > Window {
		return 0, 0, fmt.Errorf("%w: WINDOW of %d bytes", ErrProtocol, n)
	}
	return stream(b[0]), int(n), nil
}

func encodeSize(s Size) []byte {
	b := binary.LittleEndian.AppendUint16(nil, s.Rows)
	return binary.LittleEndian.AppendUint16(b, s.Cols)
}

func decodeSize(b []byte) (Size, error) {
	if len(b) != 4 {
		return Size{}, fmt.Errorf("%w: malformed RESIZE", ErrProtocol)
	}
	return Size{Rows: binary.LittleEndian.Uint16(b), Cols: binary.LittleEndian.Uint16(b[2:])}, nil
}

func decodeSignal(b []byte) (int, error) {
	if len(b) != 1 || b[0] == 0 || b[0] > 64 {
		return 0, fmt.Errorf("%w: malformed SIGNAL", ErrProtocol)
	}
	return int(b[0]), nil
}
