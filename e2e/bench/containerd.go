package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	containerdSocket = "/run/containerd.sock"
	stargzSocket     = "/run/stargz.sock"
)

// containerd is one with empty state, perhaps with the snapshotter of stargz-snapshotter beside it.
type containerd struct {
	b     *bench
	l     *link
	state string // of both, on disk
	root  string // where an image is mounted
}

// daemon is a program that listens.
type daemon struct {
	socket string
	args   []string
}

// startContainerd starts containerd, and what else its snapshotter "overlayfs" or "stargz" needs, and waits until it answers.
func (b *bench) startContainerd(ctx context.Context, l *link, snapshotter string) (*containerd, error) {
	c := &containerd{b: b, l: l, state: filepath.Join(b.work, "containerd"), root: filepath.Join(b.work, "container")}
	for _, d := range []string{c.state, c.root} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	for _, old := range []string{containerdSocket, stargzSocket, "/run/containerd"} {
		if err := os.RemoveAll(old); err != nil {
			return nil, err
		}
	}
	config := filepath.Join(b.work, "containerd.toml")
	text := fmt.Sprintf(`version = 2
root = %q
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = %q
`, filepath.Join(c.state, "containerd"), containerdSocket)
	daemons := []daemon{{containerdSocket, []string{"containerd", "--config", config}}}
	if snapshotter == "stargz" {
		text += fmt.Sprintf("[proxy_plugins.stargz]\ntype = \"snapshot\"\naddress = %q\n", stargzSocket)
		peer := daemon{stargzSocket, []string{"stargz", "serve", stargzSocket, filepath.Join(c.state, "stargz"), l.server + ":" + port}}
		daemons = append([]daemon{peer}, daemons...)
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(b.dir, "containerd.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	for _, d := range daemons {
		cmd := exec.CommandContext(ctx, d.args[0], d.args[1:]...)
		cmd.Stdout, cmd.Stderr = log, log
		if err := start(l, cmd); err != nil {
			return nil, err
		}
		go cmd.Wait() // it ends when the run is cleaned
		for _, err := os.Stat(d.socket); err != nil; _, err = os.Stat(d.socket) {
			if ctx.Err() != nil {
				return nil, fmt.Errorf("waiting for %s: %w", d.args[0], ctx.Err())
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	_, err = c.ctr(ctx, "version")
	return c, err
}

func (c *containerd) ctr(ctx context.Context, args ...string) (string, error) {
	return output(ctx, c.l, "ctr", append([]string{"--address", containerdSocket}, args...)...)
}

// pull pulls an image for a snapshotter, "overlayfs" or "stargz", and returns its top snapshot.
func (c *containerd) pull(ctx context.Context, snapshotter, repo string) (string, error) {
	ref := c.l.server + ":" + port + "/" + repo
	if snapshotter == "stargz" {
		out, err := output(ctx, c.l, "stargz", "pull", containerdSocket, ref)
		return strings.TrimSpace(out), err
	}
	out, err := c.ctr(ctx, "images", "pull", "--plain-http", "--snapshotter", snapshotter, "--print-chainid", ref)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if _, id, ok := strings.Cut(line, "chain ID: "); ok {
			return strings.TrimSpace(id), nil
		}
	}
	return "", fmt.Errorf("reading what the pull of %s said: no chain ID in %.200q", ref, out)
}

// mount mounts what a container of the image would see.
func (c *containerd) mount(ctx context.Context, snapshotter, top string) error {
	if _, err := c.ctr(ctx, "snapshots", "--snapshotter", snapshotter, "prepare", "container", top); err != nil {
		return err
	}
	commands, err := c.ctr(ctx, "snapshots", "--snapshotter", snapshotter, "mounts", c.root, "container")
	if err != nil {
		return err
	}
	_, err = output(ctx, c.l, "sh", "-ec", commands)
	return err
}

// containerdCold pulls and mounts an image, and runs a workload on it.
func (b *bench) containerdCold(snapshotter, repo, command string) func(context.Context, *link) (*sample, error) {
	return func(ctx context.Context, l *link) (*sample, error) {
		c, err := b.startContainerd(ctx, l, snapshotter)
		if err != nil {
			return nil, err
		}
		m, err := b.begin(l)
		if err != nil {
			return nil, err
		}
		var top string
		err = m.phase("pull", func() (err error) { top, err = c.pull(ctx, snapshotter, repo); return err })
		if err == nil {
			err = m.phase("mount", func() error { return c.mount(ctx, snapshotter, top) })
		}
		if err == nil {
			err = m.phase("run", func() error { return inside(ctx, l, c.root, command) })
		}
		if err != nil {
			return nil, err
		}
		return m.done(c.state)
	}
}
