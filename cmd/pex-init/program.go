//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/vm/guest"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// refusal is why a program doesn't run.
type refusal struct {
	kind guest.Kind
	msg  string
}

func (r *refusal) Error() string { return r.msg }

// exit is what the host is told.
func (r *refusal) exit() guest.Exit {
	code := 125
	switch r.kind {
	case guest.NotFound:
		code = 127
	case guest.NotExecutable:
		code = 126
	}
	return guest.Exit{Code: code, Kind: r.kind, Message: r.msg}
}

func refuse(kind guest.Kind, format string, args ...any) *refusal {
	return &refusal{kind, fmt.Sprintf(format, args...)}
}

// environment completes env. Of several values of a name the last counts.
func environment(env []string, hostname, home string, terminal bool) []string {
	all := []string{"PATH=" + defaultPath, "HOSTNAME=" + hostname}
	if terminal {
		all = append(all, "TERM=xterm")
	}
	all = append(append(all, "HOME="+home), env...)
	var out []string
	at := make(map[string]int)
	for _, kv := range all {
		name, _, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			continue
		}
		if i, ok := at[name]; ok {
			out[i] = kv
			continue
		}
		at[name] = len(out)
		out = append(out, kv)
	}
	return out
}

// candidates are the absolute paths a program may have, in the order to try them; dir is its working directory. Folders
// of PATH that aren't absolute are passed over, as they would mean something else in every working directory.
func candidates(name, dir string, env []string) []string {
	switch {
	case name == "":
		return nil
	case path.IsAbs(name):
		return []string{name}
	case strings.Contains(name, "/"):
		return []string{dir + "/" + name} // not cleaned: what is behind a symbolic link's .. is for the kernel to say
	}
	var list []string
	for _, kv := range env {
		dirs, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for dir := range strings.SplitSeq(dirs, ":") {
			if path.IsAbs(dir) {
				list = append(list, path.Join(dir, name))
			}
		}
	}
	return list
}

// tryAll calls exec for one path after the other until one runs, like execvp(3): one that isn't there is passed over,
// and one that may not be run is remembered. Errors are refusals.
func tryAll(name string, paths []string, exec func(path string) error) error {
	var denied error
	for _, p := range paths {
		err := exec(p)
		var r *refusal
		switch {
		case err == nil:
			return nil
		case errors.As(err, &r):
			return r
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			if _, serr := os.Stat(p); serr == nil {
				return refuse(guest.NotFound, "exec: %q: no such file or directory: the interpreter of %s is missing", name, p)
			}
		case errors.Is(err, unix.EACCES):
			st, serr := os.Stat(p)
			isDir := serr == nil && st.IsDir()
			switch {
			case isDir && !strings.Contains(name, "/"):
				// a folder in PATH is not a program
			case isDir:
				denied = refuse(guest.NotExecutable, "exec: %q: is a directory", name)
			default:
				denied = refuse(guest.NotExecutable, "exec: %q: permission denied", name)
			}
		default:
			return refuse(guest.NotExecutable, "exec: %q: %v", name, err)
		}
	}
	switch {
	case denied != nil:
		return denied
	case strings.Contains(name, "/"):
		return refuse(guest.NotFound, "exec: %q: stat %s: no such file or directory", name, name)
	}
	return refuse(guest.NotFound, "exec: %q: executable file not found in $PATH", name)
}
