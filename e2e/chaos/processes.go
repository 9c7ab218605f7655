package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// process is one of this machine's.
type process struct {
	pid, parent int
	args        []string
}

func (p process) String() string { return strconv.Itoa(p.pid) + ": " + strings.Join(p.args, " ") }

// program is the name that a process was started by, without its folder.
func (p process) program() string { return filepath.Base(p.args[0]) }

// processes are all those that have arguments.
func processes() (all []process) {
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil || len(b) == 0 {
			continue // it is gone
		}
		p := process{args: strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")}
		p.pid, _ = strconv.Atoi(strings.Split(n, "/")[2])
		stat, _ := os.ReadFile(filepath.Join(filepath.Dir(n), "stat"))
		// what is behind the name, which may be anything, begins with the state and the parent
		if f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])); len(f) > 1 {
			p.parent, _ = strconv.Atoi(f[1])
		}
		all = append(all, p)
	}
	return all
}

// descendants are those of a process.
func descendants(of int) (found []process) {
	all := processes()
	parents := []int{of}
	for len(parents) > 0 {
		var next []int
		for _, p := range all {
			if slices.Contains(parents, p.parent) {
				found = append(found, p)
				next = append(next, p.pid)
			}
		}
		parents = next
	}
	return found
}

// processes are those of pexfs that work on the cache folder, but for the commands that this program runs.
func (w *world) processes() []process {
	return slices.DeleteFunc(processes(), func(p process) bool {
		return len(p.args) < 4 || p.program() != "pexfs" || !slices.Contains(p.args, w.cache)
	})
}

// of are the processes of one kind: daemon, hold, view.
func (w *world) of(verb string) []process {
	return slices.DeleteFunc(w.processes(), func(p process) bool { return p.args[1] != verb })
}

// daemon is the process id of the daemon that holds the folder, or 0.
func (w *world) daemon() int {
	b, err := os.ReadFile(filepath.Join(w.cache, "lock"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	if slices.ContainsFunc(w.of("daemon"), func(p process) bool { return p.pid == pid }) {
		return pid
	}
	return 0
}
