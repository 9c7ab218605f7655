package daemon

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const nobody = 65534

// as calls f in a thread that is another user's, which only root may make. The thread ends with it.
func as(t *testing.T, uid int, f func() error) error {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- errno
			return
		}
		done <- f()
	}()
	return <-done
}

// openSocket is a socket that everybody may connect to, made by a user.
func openSocket(t *testing.T, uid int) (l *net.UnixListener, name string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pex-peer-") // where all may enter
	if err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	name = filepath.Join(dir, "s")
	err = as(t, uid, func() (err error) {
		if l, err = net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"}); err == nil {
			err = os.Chmod(name, 0o777)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, name
}

// TestPeers connects as several users to a socket that doesn't keep them out.
func TestPeers(t *testing.T) {
	l, name := openSocket(t, 0)
	var log strings.Builder
	refused := 0
	p := &peers{Listener: l, uid: 1234, log: slog.New(slog.NewTextHandler(&log, nil)), refused: func() { refused++ }}
	for _, uid := range []int{nobody, 1, 1234, 1235, 0} {
		if err := as(t, uid, func() error {
			c, err := net.Dial("unix", name)
			if err == nil {
				_, err = c.Write([]byte{byte(uid)})
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []byte{1234 & 0xff, 0} {
		c, err := p.Accept()
		if err != nil {
			t.Fatal(err)
		}
		var b [1]byte
		if _, err := io.ReadFull(c, b[:]); err != nil || b[0] != want {
			t.Errorf("the connection of %d came, want %d: %v", b[0], want, err)
		}
		c.Close()
	}
	if n := strings.Count(log.String(), "another user"); refused != 3 || n != 3 || !strings.Contains(log.String(), "uid=65534 pid=") {
		t.Errorf("%d are refused, logged: %s", refused, log.String())
	}
}

// TestForeignServer asks daemons of other users.
func TestForeignServer(t *testing.T) {
	for name, c := range map[string]struct {
		server, client int
		trusts         bool
	}{
		"root's own": {0, 0, true}, "somebody's own": {nobody, nobody, true}, "root's": {0, nobody, true}, "somebody else's": {nobody, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			_, sock := openSocket(t, c.server)
			conn, err := net.Dial("unix", sock)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			cred, err := peerOf(conn)
			if err != nil || int(cred.Uid) != c.server || trusted(cred, c.client) != c.trusts {
				t.Errorf("%+v, %v", cred, err)
			}
			if c.client != 0 {
				return
			}
			if err := checkServer(conn); (err == nil) != c.trusts || err != nil && !errors.Is(err, errForeign) {
				t.Errorf("got %v", err)
			}
			cl := newClient("", sock)
			defer cl.http.CloseIdleConnections()
			if c.trusts {
				return // it would wait for an answer
			}
			if err := cl.Ensure(t.Context()); !errors.Is(err, errForeign) || errors.Is(err, ErrGone) {
				t.Errorf("a client says %v", err)
			}
		})
	}
}
