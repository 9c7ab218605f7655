package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// pex is a cache of pexfs with one mount.
type pex struct {
	b     *bench
	l     *link
	cache string
	dir   string
	prior []string // a command before pexfs: taskset
}

func (b *bench) newPex(l *link) (*pex, error) {
	p := &pex{b: b, l: l, cache: filepath.Join(b.work, "pex"), dir: filepath.Join(b.work, "mnt")}
	return p, errors.Join(os.MkdirAll(p.cache, 0o700), os.MkdirAll(p.dir, 0o700))
}

func (p *pex) run(ctx context.Context, args ...string) (string, error) {
	all := append(append(p.prior[:len(p.prior):len(p.prior)], "pexfs"), args...)
	cmd := exec.CommandContext(ctx, all[0], all[1:]...)
	cmd.Env = append(os.Environ(), "PEX_CACHE_DIR="+p.cache)
	return finish(ctx, p.l, cmd)
}

// explain adds the end of the daemon's log to an error.
func (p *pex) explain(err error) error {
	log, readErr := os.ReadFile(filepath.Join(p.cache, "daemon.log"))
	if readErr != nil {
		return err
	}
	return fmt.Errorf("%w; the daemon's log: %s", err, log[max(0, len(log)-1000):])
}

// ref is an image of the registry, as seen over the link.
func (p *pex) ref(repo string) string { return p.l.server + ":" + port + "/" + repo }

func (p *pex) mount(ctx context.Context, ref string, flags ...string) error {
	_, err := p.run(ctx, append([]string{"mount", "-q", "--insecure", ref, p.dir}, flags...)...)
	return err
}

// wait waits until the mounted image is sealed.
func (p *pex) wait(ctx context.Context) error {
	_, err := p.run(ctx, "wait", "-q", p.dir)
	return err
}

func (p *pex) umount(ctx context.Context) error {
	_, err := p.run(ctx, "umount", p.dir)
	return err
}

// stop ends the daemon, and waits for that.
func (p *pex) stop(ctx context.Context) error {
	if _, err := p.run(ctx, "daemon", "stop"); err != nil {
		return err
	}
	for up := true; up; time.Sleep(time.Millisecond) {
		up = false
		for _, q := range processes(p.b.registry) {
			up = up || q.name == "pexfs daemon"
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// image is the sealed image: its file, and how many inodes it has.
func (p *pex) image(ctx context.Context) (file string, inodes int64, err error) {
	out, err := p.run(ctx, "status", "--json", p.dir)
	if err != nil {
		return "", 0, err
	}
	var st struct {
		Images []struct {
			Key    string
			Inodes int64
		}
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil || len(st.Images) != 1 {
		return "", 0, fmt.Errorf("reading the status of %s: %w: %.200s", p.dir, err, out)
	}
	return filepath.Join(p.cache, "images", st.Images[0].Key, "image.erofs"), st.Images[0].Inodes, nil
}

// pexCold mounts an image and runs a workload on it.
func (b *bench) pexCold(repo, command string, flags ...string) func(context.Context, *link) (*sample, error) {
	return func(ctx context.Context, l *link) (*sample, error) {
		p, err := b.newPex(l)
		if err != nil {
			return nil, err
		}
		m, err := b.begin(l)
		if err != nil {
			return nil, err
		}
		if err := m.phase("mount", func() error { return p.mount(ctx, p.ref(repo), flags...) }); err != nil {
			return nil, err
		}
		if err := m.phase("run", func() error { return inside(ctx, l, p.dir, command) }); err != nil {
			return nil, p.explain(err)
		}
		return m.done(p.cache)
	}
}

// pexSeal makes a sealed image of ref, a repository or oci:FOLDER:TAG, with the processes on the given cores ("" is all).
func (b *bench) pexSeal(ref, cores string) func(context.Context, *link) (*sample, error) {
	return func(ctx context.Context, l *link) (*sample, error) {
		p, err := b.newPex(l)
		if err != nil {
			return nil, err
		}
		if cores != "" {
			p.prior = []string{"taskset", "-c", cores}
		}
		from := ref
		if !strings.HasPrefix(from, "oci:") {
			from = p.ref(from)
		}
		m, err := b.begin(l)
		if err != nil {
			return nil, err
		}
		if err := m.phase("mount", func() error { return p.mount(ctx, from) }); err != nil {
			return nil, err
		}
		if err := m.phase("fill", func() error { return p.wait(ctx) }); err != nil {
			return nil, err
		}
		s, err := m.done(p.cache)
		if err != nil {
			return nil, err
		}
		if m.lastByte > 0 {
			s.Phases[phaseLastByte] = m.lastByte.Seconds()
		}
		return s, p.judge(ctx, s)
	}
}

// judge compares a finished image's disk and the processes' memory with what is wanted.
func (p *pex) judge(ctx context.Context, s *sample) error {
	file, inodes, err := p.image(ctx)
	if err != nil {
		return err
	}
	contents, err := distinct(p.dir)
	if err != nil {
		return err
	}
	metadata, err := metadataOf(file)
	if err != nil {
		return err
	}
	// what isn't needed any more goes behind the sealing
	if err := errors.Join(p.umount(ctx), p.stop(ctx)); err != nil {
		return err
	}
	if s.Disk, s.Files, err = usage(p.cache); err != nil {
		return err
	}
	s.Figures[figureDisk] = float64(s.Disk) / float64(contents+metadata)
	_, own, err := usage(filepath.Join(p.cache, "images"))
	if err != nil {
		return err
	}
	_, layers, err := usage(filepath.Join(p.cache, "layers"))
	if err != nil {
		return err
	}
	s.Figures[figureFiles] = float64(own + layers)
	s.Figures[figureDaemon] = float64(s.Memory["pexfs daemon"]) / float64(64<<20+250*inodes)
	s.Figures[figureView] = float64(s.Memory["pexfs view"]) / float64(24<<20)
	return nil
}

// pexBuild makes an image file of ref in one go, without cache and daemon.
func (b *bench) pexBuild(repo string) func(context.Context, *link) (*sample, error) {
	return func(ctx context.Context, l *link) (*sample, error) {
		p, err := b.newPex(l)
		if err != nil {
			return nil, err
		}
		state := filepath.Join(b.work, "built")
		if err := os.Mkdir(state, 0o700); err != nil {
			return nil, err
		}
		m, err := b.begin(l)
		if err != nil {
			return nil, err
		}
		if _, err := p.run(ctx, "image", "build", "-q", "--insecure", p.ref(repo), "-o", filepath.Join(state, "image.erofs")); err != nil {
			return nil, err
		}
		return m.done(state)
	}
}

// pexAgain mounts an image whose cache is complete, by a daemon that has just been started; the registry is asked whether it is still that.
func (b *bench) pexAgain(repo string) func(context.Context, *link) (*sample, error) {
	return func(ctx context.Context, l *link) (*sample, error) {
		p, err := b.newPex(l)
		if err != nil {
			return nil, err
		}
		t := time.Now()
		if err := p.mount(ctx, p.ref(repo)); err != nil {
			return nil, err
		}
		first := time.Since(t).Seconds()
		if err := errors.Join(p.wait(ctx), p.umount(ctx), p.stop(ctx)); err != nil {
			return nil, err
		}
		m, err := b.begin(l)
		if err != nil {
			return nil, err
		}
		if err := p.mount(ctx, p.ref(repo), "--pull", "newer"); err != nil {
			return nil, err
		}
		s, err := m.done(p.cache)
		if err != nil {
			return nil, err
		}
		s.Phases[phaseMount] = first
		s.Figures[figureRequests] = float64(s.Requests)
		return s, nil
	}
}

// pexSecond completes an image whose base another cached image has: what is fetched of it, as part of the base's size.
func (b *bench) pexSecond(im *image, form string) func(context.Context, *link) (*sample, error) {
	return func(ctx context.Context, l *link) (*sample, error) {
		other, own, base, err := b.onSameBase(ctx, im, form)
		if err != nil {
			return nil, err
		}
		p, err := b.newPex(l)
		if err != nil {
			return nil, err
		}
		if err := p.mount(ctx, p.ref(im.repo(form))); err != nil {
			return nil, err
		}
		if err := errors.Join(p.wait(ctx), p.umount(ctx)); err != nil {
			return nil, err
		}
		m, err := b.begin(l)
		if err != nil {
			return nil, err
		}
		if err := m.phase("mount", func() error { return p.mount(ctx, p.ref(other)) }); err != nil {
			return nil, err
		}
		if err := m.phase("fill", func() error { return p.wait(ctx) }); err != nil {
			return nil, err
		}
		s, err := m.done(p.cache)
		if err != nil {
			return nil, err
		}
		s.Figures[figureBase] = float64(max(0, s.Received-own)) / float64(base)
		return s, nil
	}
}
