// Command stargz is a peer of the benchmark: the snapshotter of stargz-snapshotter as a proxy plugin of containerd, and lazy pulls through
// it. Both are made of that project's own packages, with its defaults; its commands are in a module that no module proxy has.
//
//	stargz serve SOCKET ROOT HOST    the snapshotter at SOCKET, its state in ROOT, until it is interrupted; HOST speaks plain HTTP
//	stargz pull SOCKET REF           a lazy pull by the containerd at SOCKET; prints the snapshot that a container of it would start from
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/stargz-snapshotter/fs/source"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/containerd/stargz-snapshotter/service/resolver"
	"github.com/opencontainers/image-spec/identity"
	"google.golang.org/grpc"
)

// prefetch is how many bytes of a layer without a landmark are fetched before it is used: the default of that project's own pull.
const prefetch = 10 << 20

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var err error
	switch a := os.Args[1:]; {
	case len(a) == 4 && a[0] == "serve":
		err = serve(ctx, a[1], a[2], a[3])
	case len(a) == 3 && a[0] == "pull":
		err = pull(ctx, a[1], a[2])
	default:
		err = errors.New("usage: stargz serve SOCKET ROOT HOST, or stargz pull SOCKET REF")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "stargz: error:", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, socket, root, host string) error {
	var c service.Config
	c.ResolverConfig.Host = map[string]resolver.HostConfig{host: {Mirrors: []resolver.MirrorConfig{{Host: host, Insecure: true}}}}
	s, err := service.NewStargzSnapshotterService(ctx, root, &c)
	if err != nil {
		return fmt.Errorf("starting the snapshotter: %w", err)
	}
	srv := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(srv, snapshotservice.FromSnapshotter(s))
	l, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("serving the snapshotter: %w", err)
	}
	defer context.AfterFunc(ctx, srv.Stop)()
	return errors.Join(srv.Serve(l), s.Close())
}

func pull(ctx context.Context, socket, ref string) (err error) {
	c, err := client.New(socket)
	if err != nil {
		return fmt.Errorf("reaching containerd: %w", err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	ctx = namespaces.WithNamespace(ctx, namespaces.Default)
	plain := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(func(string) (bool, error) { return true, nil }))
	im, err := c.Pull(ctx, ref,
		client.WithResolver(docker.NewResolver(docker.ResolverOptions{Hosts: plain})),
		client.WithPullUnpack,
		client.WithPullSnapshotter("stargz"),
		client.WithImageHandlerWrapper(source.AppendDefaultLabelsHandlerWrapper(ref, prefetch)))
	if err != nil {
		return fmt.Errorf("pulling %s: %w", ref, err)
	}
	diffs, err := im.RootFS(ctx)
	if err != nil {
		return fmt.Errorf("reading the layers of %s: %w", ref, err)
	}
	fmt.Println(identity.ChainID(diffs))
	return nil
}
