// Package confine gives up what a process may do and doesn't need, for good: new privileges, capabilities, core dumps, and, where the
// kernel has Landlock (landlock(7)), executing, reading and writing outside of a few folders, TCP ports and connections, and signals to
// other processes.
//
// What a kernel can't enforce isn't, and State says so; nothing fails for that.
package confine

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

// Needs is what a process keeps. Files that are open stay so, and sockets in the file system can be connected to wherever they are. A
// folder that isn't there when a process is confined never is.
type Needs struct {
	Read         []string // folders beneath which files are read, and single files; nil: all that its user may read
	Devices      []string // that are opened for reading and writing, beside
	Connect      bool     // to others by TCP
	Write        []string // folders beneath which files and folders are made, written, renamed and removed
	Remove       []string // folders beneath which files are removed
	Capabilities []int    // unix.CAP_…, those of them that the process has
}

// State is what holds for a process.
type State struct {
	NoNewPrivileges bool     `json:"noNewPrivileges"`
	CoreDumps       bool     `json:"coreDumps"`    // and being traced by other processes of its user
	Capabilities    []string `json:"capabilities"` // that it has still
	Landlock        int      `json:"landlock"`     // the kernel's version of it; 0: none
	Writes          []string `json:"writes"`       // folders beneath which alone it may write; null: wherever its user may
	Reads           []string `json:"reads"`        // folders and files that alone it may read; null: what its user may
	Executes        bool     `json:"executes"`
	Connects        bool     `json:"connects"`   // to others by TCP
	OpensPorts      bool     `json:"opensPorts"` // TCP
	Signals         bool     `json:"signals"`    // other processes than those it has started since, and connects to abstract sockets
}

// Missing says what the kernel doesn't enforce, for people; empty: nothing.
func (s State) Missing() (what []string) {
	if s.Executes {
		what = append(what, "that it executes no program and writes nowhere but in its folders (Linux 5.13 with Landlock)")
	}
	if s.OpensPorts {
		what = append(what, "that it opens no ports (Linux 6.7)")
	}
	if s.Signals {
		what = append(what, "that it signals no other processes (Linux 6.12)")
	}
	return what
}

const (
	reads  = ll.AccessFSReadFile | ll.AccessFSReadDir
	writes = ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSMakeReg | ll.AccessFSMakeDir | ll.AccessFSRemoveFile | ll.AccessFSRemoveDir | ll.AccessFSRefer
	all    = reads | writes | ll.AccessFSExecute | ll.AccessFSMakeChar | ll.AccessFSMakeBlock | ll.AccessFSMakeFifo | ll.AccessFSMakeSock | ll.AccessFSMakeSym | ll.AccessFSIoctlDev
)

// Self confines this process, all its threads, and those that it starts. It is called once. After an error an unknown part of it holds.
func Self(n Needs) (State, error) {
	s := State{Writes: n.Write, Reads: n.Read, Capabilities: []string{}}
	_ = time.Local.String() // has the time zone's file read, by which times are logged
	if err := NoCoreDumps(); err != nil {
		return s, fmt.Errorf("confining: %w", err)
	}
	if err := prctl(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return s, fmt.Errorf("confining: giving up new privileges: %w", err)
	}
	s.NoNewPrivileges = true
	if err := keep(n.Capabilities); err != nil {
		return s, fmt.Errorf("confining: giving up capabilities: %w", err)
	}
	caps, err := has()
	if err != nil {
		return s, fmt.Errorf("confining: asking for capabilities: %w", err)
	}
	s.Capabilities = names(caps)
	if err := s.restrict(n); err != nil {
		return s, fmt.Errorf("confining: %w", err)
	}
	return s, nil
}

// NoCoreDumps has this process's memory, which may have secrets in it, neither dumped nor looked at by other processes of its user.
func NoCoreDumps() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("turning off core dumps: %w", err)
	}
	return nil
}

// restrict has Landlock enforce what it can.
func (s *State) restrict(n Needs) error {
	abi, err := ll.LandlockGetABIVersion()
	if err != nil {
		abi = 0
	}
	s.Landlock = abi
	s.Executes, s.OpensPorts, s.Connects, s.Signals = abi < 1, abi < 4, n.Connect || abi < 4, abi < 6 || !signalsOwnThreads()
	if abi < 1 {
		s.Writes, s.Reads = nil, nil
		return nil
	}
	scopes := landlock.ScopedSet(ll.ScopeSignal | ll.ScopeAbstractUnixSocket)
	if s.Signals {
		scopes = 0
	}
	net := landlock.AccessNetSet(ll.AccessNetBindTCP)
	if !n.Connect {
		net |= ll.AccessNetConnectTCP
	}
	c, err := landlock.NewConfig(landlock.AccessFSSet(all), net, scopes)
	if err != nil {
		return err
	}
	read := landlock.PathAccess(reads, "/")
	if n.Read != nil {
		read = landlock.PathAccess(ll.AccessFSReadFile, n.Read...).IgnoreIfMissing()
	}
	return c.BestEffort().Restrict(
		read,
		landlock.PathAccess(ll.AccessFSReadFile|ll.AccessFSWriteFile|ll.AccessFSIoctlDev, n.Devices...).IgnoreIfMissing(),
		landlock.PathAccess(reads|writes, n.Write...),
		landlock.PathAccess(ll.AccessFSRemoveFile, n.Remove...),
	)
}

// signalsOwnThreads tells whether the kernel lets a process that may signal no others signal its own threads, as Go does: early ones with
// that right don't.
func signalsOwnThreads() bool {
	errata, err := ll.LandlockGetErrata()
	return err == nil && errata&2 != 0
}

// prctl calls prctl(2) in all threads.
func prctl(option, arg uintptr) error {
	if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, option, arg, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// DropCapabilities gives up those that Self has kept.
func DropCapabilities() error {
	if err := keep(nil); err != nil {
		return fmt.Errorf("giving up capabilities: %w", err)
	}
	return nil
}

// keep gives up all capabilities but some, and the way to get them again by executing a program.
func keep(caps []int) error {
	now, err := has()
	if err != nil {
		return err
	}
	if now&(1<<unix.CAP_SETPCAP) != 0 {
		for c := 0; c <= 63; c++ {
			err := prctl(unix.PR_CAPBSET_DROP, uintptr(c))
			if errors.Is(err, unix.EINVAL) {
				break // the kernel has no more
			}
			if err != nil && !slices.Contains(caps, c) {
				return err
			}
		}
	}
	var want uint64
	for _, c := range caps {
		want |= 1 << c
	}
	want &= now
	hdr := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := &[2]unix.CapUserData{{Effective: uint32(want), Permitted: uint32(want)}, {Effective: uint32(want >> 32), Permitted: uint32(want >> 32)}}
	var pinned runtime.Pinner // their addresses are passed on as numbers
	pinned.Pin(hdr)
	pinned.Pin(data)
	defer pinned.Unpin()
	if _, _, errno := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(hdr)), uintptr(unsafe.Pointer(data)), 0); errno != 0 {
		return errno
	}
	return nil
}

// has gives the permitted capabilities, a bit for each.
func has() (uint64, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return 0, err
	}
	return uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32, nil
}

// names are those of capabilities that a process here may keep; of others the numbers.
func names(caps uint64) []string {
	list := []string{}
	for c := range 64 {
		switch {
		case caps&(1<<c) == 0:
		case c == unix.CAP_DAC_READ_SEARCH:
			list = append(list, "CAP_DAC_READ_SEARCH")
		default:
			list = append(list, fmt.Sprintf("capability %d", c))
		}
	}
	return list
}
