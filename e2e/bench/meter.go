package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// sample is what one run of one way took.
type sample struct {
	Seconds  float64            `json:"seconds"`
	Phases   map[string]float64 `json:"phases,omitempty"` // seconds: parts of the whole, or moments in it
	CPU      float64            `json:"cpuSeconds"`       // of all processes of the way, as far as seen
	Received int64              `json:"receivedBytes"`    // packets that came over the link
	Requests int64              `json:"requests"`
	Memory   map[string]int64   `json:"peakAnonymousBytes,omitempty"` // by process
	Disk     int64              `json:"diskBytes,omitempty"`
	Files    int64              `json:"files,omitempty"`
	Figures  map[string]float64 `json:"figures,omitempty"` // what else the row is about
}

// meter measures one run. Memory, CPU time and the link are looked at every 20 ms; what comes and goes between is not seen.
type meter struct {
	b        *bench
	l        *link
	began    time.Time
	received int64
	requests int64
	s        sample
	end      context.CancelFunc
	watcher  sync.WaitGroup

	lastByte time.Duration // when the link's counter last grew
	cpu      map[int]float64
}

const interval = 20 * time.Millisecond

func (b *bench) begin(l *link) (*meter, error) {
	m := &meter{b: b, l: l, cpu: map[int]float64{}}
	m.s.Phases, m.s.Memory, m.s.Figures = map[string]float64{}, map[string]int64{}, map[string]float64{}
	var err error
	if m.received, err = l.received(); err != nil {
		return nil, err
	}
	if m.requests, err = b.requests(); err != nil {
		return nil, err
	}
	for _, p := range processes(b.registry) {
		m.cpu[p.pid] = -p.cpu // what it had before
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.end = cancel
	m.began = time.Now()
	m.watcher.Go(func() { m.watch(ctx) })
	return m, nil
}

func (m *meter) watch(ctx context.Context) {
	seen := map[int]float64{}
	last := m.received
	defer func() {
		for pid, cpu := range seen {
			m.s.CPU += cpu + min(m.cpu[pid], 0)
		}
	}()
	for {
		now := map[string]int64{}
		for _, p := range processes(m.b.registry) {
			now[p.name] += p.anonymous
			seen[p.pid] = p.cpu
		}
		for name, n := range now {
			m.s.Memory[name] = max(m.s.Memory[name], n)
		}
		if n, err := m.l.received(); err == nil && n > last+2048 { // answers to keep a connection alive are smaller
			last, m.lastByte = n, time.Since(m.began)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(interval):
		}
	}
}

// phase times a part of the run.
func (m *meter) phase(name string, f func() error) error {
	t := time.Now()
	err := f()
	m.s.Phases[name] += time.Since(t).Seconds()
	return err
}

// done ends the run and returns what it took. state is the folder of what it keeps on disk, or "".
func (m *meter) done(state string) (*sample, error) {
	m.s.Seconds = time.Since(m.began).Seconds()
	m.end()
	m.watcher.Wait()
	received, err := m.l.received()
	if err != nil {
		return nil, err
	}
	requests, err := m.b.requests()
	if err != nil {
		return nil, err
	}
	m.s.Received, m.s.Requests = received-m.received, requests-m.requests
	if state != "" {
		m.s.Disk, m.s.Files, err = usage(state)
	}
	return &m.s, err
}

// usage is what a folder takes on its disk: bytes and regular files. It stays on the folder's file system.
func usage(dir string) (bytes, files int64, err error) {
	var root syscall.Stat_t
	if err := syscall.Lstat(dir, &root); err != nil {
		return 0, 0, err
	}
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone since
		} else if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return nil // as above
		}
		if st.Dev != root.Dev {
			return fs.SkipDir
		}
		if id := (inode{st.Dev, st.Ino}); !seen[id] {
			seen[id] = true
			bytes += st.Blocks * 512
			if d.Type().IsRegular() {
				files++
			}
		}
		return nil
	})
	return bytes, files, err
}

// process is one that is measured.
type process struct {
	pid       int
	name      string
	anonymous int64   // bytes
	cpu       float64 // seconds, with children that have ended
}

// measured are the programs that are measured. Other processes are the image's, or do small things.
func measured(name string) bool {
	switch name {
	case "pexfs", "containerd", "stargz", "ctr", "skopeo", "umoci", "mkfs.erofs":
		return true
	}
	return false
}

// processes are those to be measured that run in this namespace, but the registry.
func processes(registry *exec.Cmd) []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var all []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || registry != nil && registry.Process != nil && pid == registry.Process.Pid {
			continue
		}
		comm, err := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
		p := process{pid: pid, name: strings.TrimSpace(string(comm))}
		if err != nil || !measured(p.name) {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue // it has ended
		}
		if args := strings.Split(string(cmdline), "\x00"); len(args) > 1 && (p.name == "pexfs" || p.name == "stargz") {
			p.name += " " + args[1]
		}
		status, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "status"))
		if _, rest, ok := strings.Cut(string(status), "\nRssAnon:"); ok {
			kb, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
			n, _ := strconv.ParseInt(kb, 10, 64)
			p.anonymous = n << 10
		}
		stat, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])); len(f) > 15 {
			for _, ticks := range f[11:15] { // utime, stime, cutime, cstime
				n, _ := strconv.ParseFloat(ticks, 64)
				p.cpu += n / 100
			}
		}
		all = append(all, p)
	}
	return all
}
