// Package cli is what the programs' command lines share: how errors and progress look, and opening an image through the
// daemon.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"github.com/google/go-containerregistry/pkg/authn"
	"golang.org/x/term"

	"github.com/pexfs/pex/cmd/internal/confine"
	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/fusefs"
	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/registry"
	"github.com/pexfs/pex/lazy/registry/hosts"
	"github.com/pexfs/pex/lazy/store"
)

// PrintError prints an error as "program: error: …", and a hint where there is one.
func PrintError(program string, err error) {
	fmt.Fprintf(os.Stderr, "%s: error: %s\n", program, OneLine(err.Error()))
	if h := Hint(err); h != "" {
		fmt.Fprintf(os.Stderr, "%s: hint: %s\n", program, h)
	}
}

// PrintWarning prints "program: warning: …".
func PrintWarning(program, text string) {
	fmt.Fprintf(os.Stderr, "%s: warning: %s\n", program, OneLine(text))
}

// OneLine keeps what a registry or an image says from looking like more lines, or commanding the terminal.
func OneLine(s string) string {
	s = strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ")
	return strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) { // control characters, and those that turn the direction of writing
			return '?'
		}
		return r
	}, s)
}

// Hint is what can be done about an error, or empty.
func Hint(err error) string {
	var e *daemon.Error
	var h interface{ Hint() string }
	switch {
	case errors.As(err, &e) && e.Hint != "":
		return e.Hint
	case errors.As(err, &h):
		return h.Hint()
	case errors.Is(err, fusefs.ErrNoFUSE):
		return fusefs.Hint
	case errors.Is(err, syscall.EROFS):
		return "a cache folder that can be written to is named with --cache-dir or $PEX_CACHE_DIR; what is mounted can still be read"
	case errors.Is(err, syscall.ENOSPC):
		return "make room on that disk: `pexfs du` shows what the cache takes there, and `pexfs gc --all` removes what nobody uses"
	case errors.Is(err, syscall.ENOTCONN):
		return "nobody serves what is mounted there: `pexfs umount DIR` ends it"
	case errors.Is(err, syscall.EBUSY):
		return "end what uses it: `fuser -vm DIR` lists it"
	}
	return ""
}

// Version is the module's version, or the revision it was built from.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	if v == "" || v == "(devel)" {
		v = "devel"
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v += " " + s.Value
			}
		}
	}
	return v
}

// OpenOptions of an opening.
type OpenOptions struct {
	CacheDir string
	Platform string
	Fill     bool
	Insecure bool
	Quiet    bool // no progress, only warnings
	Offline  bool // open only what the cache has, and is complete
	Pull     Pull // when the registry is asked for a tag
	// HostsDirs are folders that say which servers stand for a registry: see hosts.Dirs.
	HostsDirs string
	// Profile, if it isn't nil, names a profile to look for beside an image that isn't cached.
	Profile *string
	Trust
}

// Open has the daemon open an image, starting the daemon where none runs, with this user's credentials. Progress goes to
// standard error if that is a terminal.
func Open(ctx context.Context, program, name string, o OpenOptions) (*daemon.Client, *daemon.Opened, error) {
	r, err := ref.Parse(name)
	if err != nil {
		return nil, nil, err
	}
	if r, err = r.Abs(); err != nil {
		return nil, nil, err
	}
	c, err := daemon.Connect(ctx, o.CacheDir)
	if err != nil {
		return nil, nil, err
	}
	dirs, err := HostsDirs(o.HostsDirs)
	if err != nil {
		return nil, nil, err
	}
	req := daemon.OpenRequest{Ref: r.String(), Platform: o.Platform, Fill: o.Fill, Insecure: o.Insecure, Offline: o.Offline, Pull: lazy.Pull(o.Pull), HostsDirs: dirs, Profile: o.Profile, Strict: o.Strict, Verify: bool(o.Verify), MaxSize: int64(o.MaxSize), MaxEntries: int(o.MaxEntries)}
	if r.Transport == ref.Registry && !o.Offline {
		a, err := Credentials(ctx, r)
		if err != nil {
			return nil, nil, fmt.Errorf("finding credentials for %s: %w", r, err)
		}
		req.Auth = &a
		if req.HostAuth, err = daemon.HostCredentials(ctx, r, dirs); err != nil {
			return nil, nil, err
		}
	}
	p := NewProgress(program, os.Stderr, o.Quiet)
	defer p.End()
	opened, err := c.Open(ctx, req, p.Event)
	if errors.Is(err, daemon.ErrGone) && ctx.Err() == nil {
		// it ended while we asked: idle, or stopped; once more with another
		if err = c.Ensure(ctx); err == nil {
			opened, err = c.Open(ctx, req, p.Event)
		}
	}
	return c, opened, err
}

// Credentials finds the user's credentials for the registry of r, in a process that is looked into by nobody from then on.
func Credentials(ctx context.Context, r ref.Ref) (authn.AuthConfig, error) {
	if err := confine.NoCoreDumps(); err != nil {
		return authn.AuthConfig{}, err
	}
	return registry.Credentials(ctx, r)
}

// HostsDirs are the folders of hosts.toml that --hosts-dir or the environment names.
func HostsDirs(flag string) (string, error) {
	return absoluteDirs(cmp.Or(flag, os.Getenv(hosts.EnvDirs)))
}

// Reading says how to read from a reference's registry as this user, and from the servers that stand for it by hosts.toml in the folders that
// hostsDir, the flag's value, names.
func Reading(ctx context.Context, r ref.Ref, hostsDir string, insecure bool) (o registry.Options, err error) {
	o = registry.Options{Insecure: insecure, UserAgent: "pex"}
	dirs, err := HostsDirs(hostsDir)
	if err != nil || r.Transport != ref.Registry {
		return o, err
	}
	if o.Auth, err = Credentials(ctx, r); err != nil {
		return o, fmt.Errorf("finding credentials for %s: %w", r, err)
	}
	o.Hosts, o.HostAuth, err = daemon.Hosts(ctx, r, dirs)
	return o, err
}

// absoluteDirs makes the names in a list of folders mean the same to another process.
func absoluteDirs(list string) (string, error) {
	all := filepath.SplitList(list)
	for i, dir := range all {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return "", fmt.Errorf("finding %s: %w", dir, err)
		}
		all[i] = abs
	}
	return strings.Join(all, string(filepath.ListSeparator)), nil
}

// Progress shows how far an operation is, on one line of a terminal. Its methods may be called concurrently.
type Progress struct {
	program string
	w       io.Writer
	line    bool // w is a terminal

	mu     sync.Mutex
	start  time.Time
	at     time.Time
	bytes  int64
	rate   float64 // bytes a second
	shown  bool
	warned map[string]bool
}

// NewProgress makes a Progress that prints to f.
func NewProgress(program string, f *os.File, quiet bool) *Progress {
	return &Progress{program: program, w: f, line: !quiet && term.IsTerminal(int(f.Fd())), start: time.Now(), warned: make(map[string]bool)}
}

// Event shows a step of an opening.
func (p *Progress) Event(e lazy.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Stage == "warning" {
		if !p.warned[e.Text] {
			p.warned[e.Text] = true
			p.clear()
			fmt.Fprintf(p.w, "%s: warning: %s\n", p.program, OneLine(e.Text))
		}
		return
	}
	text := e.Stage
	if e.Text != "" {
		text += " (" + OneLine(e.Text) + ")"
	}
	p.show(text, e.Bytes, e.Total)
}

// Step shows how far any other operation is; total may be 0.
func (p *Progress) Step(text string, bytes, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.show(text, bytes, total)
}

// Image shows how much of an image is there.
func (p *Progress) Image(s daemon.ImageStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.show(string(s.State), s.Present, s.Size)
}

// show prints the line, once the operation has taken more than a moment.
func (p *Progress) show(text string, bytes, total int64) {
	now := time.Now()
	if !p.line || now.Sub(p.start) < 500*time.Millisecond {
		return
	}
	if d := now.Sub(p.at); !p.at.IsZero() && d > 0 && bytes >= p.bytes {
		p.rate = 0.8*p.rate + 0.2*float64(bytes-p.bytes)/d.Seconds()
	}
	p.at, p.bytes = now, bytes
	s := text
	if total > 0 {
		s += fmt.Sprintf(" %s of %s, %s/s", Bytes(bytes), Bytes(total), Bytes(int64(p.rate)))
	} else if bytes > 0 {
		s += " " + Bytes(bytes)
	}
	fmt.Fprintf(p.w, "\r\033[K%s: %s", p.program, s)
	p.shown = true
}

func (p *Progress) clear() {
	if p.shown {
		io.WriteString(p.w, "\r\033[K")
		p.shown = false
	}
}

// End takes the line away.
func (p *Progress) End() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
}

// Bytes is a number of bytes for people.
func Bytes(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%.0f GiB", float64(n)/(1<<30))
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.0f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

// Find looks an image up among those of the cache: by reference, by the beginning of its key or manifest digest, or by the folder
// it is mounted on.
func Find(st *daemon.Status, name string) (*daemon.ImageStatus, error) {
	canonical := ""
	if r, err := ref.Parse(name); err == nil {
		if r, err = r.Abs(); err == nil {
			canonical = r.String()
		}
	}
	mounted := MountUser(name)
	hex := strings.TrimPrefix(name, "sha256:")
	var found []*daemon.ImageStatus
	for i := range st.Images {
		im := &st.Images[i]
		for _, r := range im.Refs {
			if r == canonical {
				return im, nil
			}
		}
		for _, u := range im.Users {
			if u == mounted {
				return im, nil
			}
		}
		if len(hex) >= 6 && (strings.HasPrefix(string(im.Key), hex) || strings.HasPrefix(im.Manifest, hex)) {
			found = append(found, im)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("image %s: %w", name, store.ErrNotCached)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%s names %d images", name, len(found))
}
