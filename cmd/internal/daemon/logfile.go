package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// logMost is how many bytes a log file has, about: what is older is in a second file beside it, NAME.old, and what is older than that is gone.
const logMost = 4 << 20

// daemonLog is the name of the log of a daemon that another command started, in its cache folder.
const daemonLog = "daemon.log"

// logFile is a file that what is logged is appended to. It is the process's standard output and error, too, so that the last words of one
// that crashes are in it. Writes may come from several goroutines.
type logFile struct {
	name string
	most int64
	fds  []int // that are made to be the file

	mu   sync.Mutex // guards what follows
	f    *os.File
	size int64
}

// OpenLog opens a log of a cache folder for what a process says before it has a log of its own, or for one that hasn't got any: an old one of full
// size is put aside.
func OpenLog(cacheDir, name string) (*os.File, error) {
	path := filepath.Join(cacheDir, name)
	if st, err := os.Lstat(path); err == nil && st.Size() > logMost {
		if err := asOwner(cacheDir, func() error { return os.Rename(path, path+".old") }); err != nil {
			return nil, fmt.Errorf("putting a log aside: %w", err)
		}
	}
	return openAppend(path)
}

func openAppend(name string) (*os.File, error) {
	return openOwn(name, os.O_WRONLY|os.O_APPEND)
}

// openLog opens a log file and makes the descriptors fds it.
func openLog(name string, most int64, fds ...int) (*logFile, error) {
	l := &logFile{name: name, most: most, fds: fds}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("opening log: %w", err)
	}
	return l, nil
}

func (l *logFile) open() error {
	f, err := openAppend(l.name)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	for _, fd := range l.fds {
		if err == nil {
			err = unix.Dup3(int(f.Fd()), fd, 0)
		}
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if l.f != nil {
		_ = l.f.Close() // what was written to it was checked then
	}
	l.f, l.size = f, st.Size()
	return nil
}

// Write appends a line. A file that can't be replaced by a new one goes on.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(p)) > l.most && os.Rename(l.name, l.name+".old") == nil {
		if err := l.open(); err != nil {
			return 0, err
		}
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}
