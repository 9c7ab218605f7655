package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ErrLocked is wrapped where another process holds the folder.
var ErrLocked = errors.New("cache folder is in use")

// Holder is who holds a folder, or did when it last was held.
type Holder struct {
	PID     string    // as the lock file has it; it may be a number of another namespace
	Since   time.Time // when it took the folder
	Command string    // that it runs, with its arguments; "": not known
}

// Holder reads who holds the folder. The error wraps fs.ErrNotExist where nobody ever did.
func (s *Store) Holder() (Holder, error) {
	f, err := os.Open(filepath.Join(s.dir, "lock"))
	if err != nil {
		return Holder{}, fmt.Errorf("reading who holds the cache folder: %w", err)
	}
	defer f.Close()
	return readHolder(f)
}

func readHolder(f *os.File) (h Holder, err error) {
	st, err := f.Stat()
	if err != nil {
		return h, fmt.Errorf("reading who holds the cache folder: %w", err)
	}
	b := make([]byte, 20)
	n, _ := f.ReadAt(b, 0) // empty: it is just taking the folder
	h.PID, h.Since = strings.TrimSpace(string(b[:n])), st.ModTime()
	if strings.Trim(h.PID, "0123456789") != "" || h.PID == "" {
		h.PID = "unknown"
		return h, nil
	}
	const most = 200 // bytes of a command
	if line, err := os.ReadFile("/proc/" + h.PID + "/cmdline"); err == nil {
		h.Command = string(bytes.TrimSpace(bytes.ReplaceAll(line[:min(len(line), most)], []byte{0}, []byte{' '})))
	}
	return h, nil
}

// String is "process 123 since 2006-01-02 15:04:05 (pexfs daemon)".
func (h Holder) String() string {
	s := fmt.Sprintf("process %s since %s", h.PID, h.Since.Format(time.DateTime))
	if h.Command != "" {
		s += " (" + h.Command + ")"
	}
	return s
}

// heldError is the error where the folder has a writer.
type heldError struct {
	dir string
	by  Holder
}

func (e heldError) Error() string { return fmt.Sprintf("%v: %s is held by %s", ErrLocked, e.dir, e.by) }
func (e heldError) Unwrap() error { return ErrLocked }

// Hint is what to do about it.
func (e heldError) Hint() string {
	return "other commands use that daemon; `pexfs daemon restart` replaces it by this program's own, and `pexfs daemon stop` ends it"
}

// versionError is the error where the folder isn't one of this version, and is left alone.
type versionError struct{ dir, version string }

func (e versionError) Error() string {
	if e.version == "" {
		return fmt.Sprintf("opening cache folder %s: its version file is empty: it is left alone", e.dir)
	}
	return fmt.Sprintf("opening cache folder %s: it is of another version, %.40q, and this program's is %q: it is left alone", e.dir, e.version, Version)
}

// Hint is what to do about it.
func (e versionError) Hint() string {
	if e.version == "" {
		return fmt.Sprintf("if no other version of this program has used it, `echo %s >%s` mends that; else name another folder with --cache-dir or $PEX_CACHE_DIR", Version, filepath.Join(e.dir, "version"))
	}
	return "name another folder with --cache-dir or $PEX_CACHE_DIR, or remove this one when nothing uses it any more"
}
