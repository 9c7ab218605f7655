package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/cmd/internal/holder"
	"github.com/pexfs/pex/cmd/internal/view"
	"github.com/pexfs/pex/fusefs"
)

// viewSpec is what a view is told: everything it needs, so that it never asks for more.
type viewSpec struct {
	Opened     daemon.Opened `json:"opened"`
	File       string        `json:"file"` // instead of Opened: an image file
	Dir        string        `json:"dir"`
	Source     string        `json:"source"`
	Fill       bool          `json:"fill"`
	AllowOther bool          `json:"allowOther"`
	Debug      bool          `json:"debug"`
	Via        string        `json:"via"`
	IOTimeout  time.Duration `json:"ioTimeout"` // in ns
	Record     *view.Record  `json:"record"`    // nil: what is read makes no profile
}

// maxSpec bounds a viewSpec's JSON, in bytes; most of it is the image's configuration.
const maxSpec = 64 << 20

// viewsLog is the log of holders and views, in the cache folder.
const viewsLog = "views.log"

// startView starts a holder, and by it a view, and waits until that serves or fails.
func startView(ctx context.Context, cacheDir string, s viewSpec) error {
	cacheDir, err := filepath.Abs(cacheDir)
	if err != nil {
		return err
	}
	task, err := taskFile(s)
	if err != nil {
		return fmt.Errorf("starting the view: %w", err)
	}
	defer task.Close()
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(exe, "hold", "--cache-dir", cacheDir, "--", s.Dir)
	cmd.Dir = "/"
	cmd.Stdin = task
	see := ""
	if log, err := daemon.OpenLog(cacheDir, viewsLog); err == nil { // an image file is mounted without a cache
		cmd.Stderr, see = log, ": see "+log.Name()
		defer log.Close()
	}
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("starting the view: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	serves, e := hear(r)
	if serves {
		return nil
	}
	err = cmd.Wait()
	if errors.Is(alive(s.Dir), unix.ENOTCONN) { // it died with the mount half made
		err = errors.Join(err, fusefs.Unmount(s.Dir))
	}
	if e != nil {
		return e
	}
	return fmt.Errorf("the view ended: %w%s", err, see)
}

// taskFile is a file that each view of a mount can read from its beginning.
func taskFile(s viewSpec) (*os.File, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("view", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "view")
	if _, err := f.Write(b); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// viewWord is what a view tells whoever started its holder, as a line of JSON: warnings, and in the end that its mount can be used, or why
// not.
type viewWord struct {
	Warning string        `json:"warning,omitempty"`
	Serves  bool          `json:"serves,omitempty"`
	Error   *daemon.Error `json:"error,omitempty"`
}

// hear passes the warnings of views on until one serves, or the holder ends; then with the last one's error, or nil where none said why.
func hear(r io.Reader) (serves bool, err *daemon.Error) {
	for told := bufio.NewScanner(r); told.Scan(); {
		var w viewWord
		switch _ = json.Unmarshal(told.Bytes(), &w); { // one that was killed may have said half of it
		case w.Serves:
			return true, nil
		case w.Error != nil:
			err = w.Error
		case w.Warning != "":
			cli.PrintWarning("pexfs", w.Warning)
		}
	}
	return false, err
}

// holdReadyFD is where a holder inherits what its views tell.
const holdReadyFD = 3

func holdCommand(cacheDir *string) *cobra.Command {
	return &cobra.Command{
		Use: "hold DIR", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			syscall.CloseOnExec(holdReadyFD)
			debug.SetGCPercent(10) // it makes no garbage to speak of
			h := &holder.Holder{
				Task: os.Stdin, Ready: os.NewFile(holdReadyFD, "ready"), View: []string{"view", "--cache-dir", *cacheDir},
				Log:     slog.New(slog.NewTextHandler(os.Stderr, nil)).With("holder", os.Getpid()),
				Unmount: func() error { return fusefs.Unmount(args[0]) },
				Daemon:  func(ctx context.Context) error { return startDaemon(ctx, *cacheDir) },
			}
			if err := h.Run(holder.Terminate(cmd.Context())); err != nil {
				h.Log.Error("the holder ends", "err", err)
				return exitError{status: 1}
			}
			return nil
		},
	}
}

func viewCommand(cacheDir *string) *cobra.Command {
	return &cobra.Command{
		Use: "view", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			terminate := holder.Terminate(cmd.Context())
			_ = os.WriteFile("/proc/self/comm", []byte("pexfs"), 0) // what ps calls it; it was started by another name
			ready := os.NewFile(holder.ReadyFD, "ready")
			syscall.CloseOnExec(holder.ReadyFD)
			log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("view", os.Getpid())
			tell := json.NewEncoder(ready)
			warn := func(text string) {
				log.Warn(text)
				tell.Encode(viewWord{Warning: text})
			}
			err := takeView(*cacheDir, log, warn, terminate, func() {
				tell.Encode(viewWord{Serves: true})
				ready.Close()
			})
			if err != nil {
				log.Error("the view ends", "err", err)
				tell.Encode(viewWord{Error: &daemon.Error{Text: err.Error(), Hint: cli.Hint(err)}})
				return exitError{status: 1}
			}
			return nil
		},
	}
}

// takeView takes its task from the holder, and serves.
func takeView(cacheDir string, log *slog.Logger, warn func(string), terminate <-chan os.Signal, ready func()) error {
	m := mounter{log: log, warn: warn}
	if err := json.NewDecoder(io.NewSectionReader(os.Stdin, 0, maxSpec)).Decode(&m.viewSpec); err != nil {
		return fmt.Errorf("reading the view's task: %w", err)
	}
	link, state, files, err := holder.Join()
	if err != nil {
		return err
	}
	defer link.Close()
	m.link = link
	if m.left, err = takeLeft(state, files); err != nil {
		return err
	}
	c, err := daemon.NewClient(cacheDir) // looks where the socket is, while it may
	if err != nil {
		return err
	}
	return m.serve(c, terminate, ready)
}

// serveHere serves in this process, without a holder.
func serveHere(c *daemon.Client, s viewSpec) error {
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(terminate)
	m := mounter{viewSpec: s, link: new(holder.Link), log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	m.warn = func(text string) { cli.PrintWarning("pexfs", text) }
	return m.serve(c, terminate, func() {})
}

// serve shows the image and serves until the mount ends. A signal unmounts, if nobody uses the mount.
func (m *mounter) serve(c *daemon.Client, terminate <-chan os.Signal, ready func()) error {
	if m.left.ended() {
		return nil
	}
	go func() {
		if m.link.AwaitEnd() {
			m.log.Warn("the holder is gone: nobody takes over when this view dies, nor starts a daemon for it", "dir", m.Dir)
		}
	}()
	if err := m.prepare(); err != nil {
		return err
	}
	srv, end, err := m.open(c)
	if err != nil {
		return err
	}
	if err := m.settle(); err != nil {
		return errors.Join(err, m.unmount(srv))
	}
	if err := m.link.Serves(); err != nil {
		m.log.Warn("nobody takes over when this view dies", "dir", m.Dir, "err", err)
	}
	ready()
	over := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-terminate:
				if err := m.unmount(srv); err != nil {
					m.log.Warn("unmounting", "dir", m.Dir, "err", err)
				}
			case <-over:
				return
			}
		}
	}()
	err = srv.Wait()
	close(over)
	<-ended
	if err == nil { // the holder, too, lets go of the image, before that is of no more use to anybody
		m.image = nil
		_ = m.keep(left{Via: viaEnded}) // or there is none
	}
	return errors.Join(err, end())
}

// open opens the image and shows it.
func (m *mounter) open(c *daemon.Client) (srv shown, end func() error, err error) {
	if m.File != "" {
		i, err := openImageFile(m.File)
		if err != nil {
			return nil, nil, err
		}
		end = i.f.Close
		srv, err = m.showFUSE(i.im, i)
		if err != nil {
			return nil, nil, errors.Join(err, end())
		}
		return srv, end, nil
	}
	o := view.Options{Who: "mount " + m.Dir, Fill: m.Fill, Record: m.Record, IOTimeout: m.IOTimeout, Warn: m.warn, Ensure: m.ensure(c)}
	if m.left != nil { // what it reads is no longer what comes first
		o.Late, o.Record = true, nil
	}
	im, err := view.Attach(context.Background(), c, &m.Opened, o)
	if err != nil {
		return nil, nil, err
	}
	m.image = im.File()
	if srv, err = m.show(im); err != nil {
		return nil, nil, errors.Join(err, im.Close())
	}
	return srv, im.Close, nil
}
