package machine

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/pexfs/pex/fusefs"
	"github.com/pexfs/pex/vm"
	"github.com/pexfs/pex/vm/vhostuser"
)

// What the devices are called that serve a root.
const (
	fsTag  = "pexroot"
	diskID = "pex-root"
)

// What a guest reads of a file in advance, in KiB. Of what isn't complete it would fetch what nobody reads: with layers in
// chunks of 64 KiB, python3 importing numpy fetched 18.5 MB at 256, as at 128 (18.4) and little more than at 16 (17.7), and
// 21.2 at 1024, for the same processor time. What is complete is read in fewer requests.
const (
	aheadMissing  = 256
	aheadComplete = 1024
)

// rootfs is the root of one machine, and what serves it.
type rootfs struct {
	device vm.Rootfs
	params []string // tell PID 1 where its root is, and how to read it
	conn   *net.UnixConn
	theirs *os.File // what only the VMM is to hold, or nil
	server sync.WaitGroup
}

// serveRoot makes image, which is open, the root of a machine whose life is ctx. A root that can no longer be served
// ends the machine by kill; what a reader of it can't be told is logged.
func serveRoot(ctx context.Context, kill context.CancelCauseFunc, image Image, root Root, log *slog.Logger) (*rootfs, error) {
	switch root {
	case Pmem:
		return &rootfs{
			device: vm.Pmem{File: image.File(), Size: image.Size()},
			params: []string{"pex.root=pmem:/dev/pmem0"},
		}, nil
	case Verity:
		tree, blocks, hash, err := image.Proof()
		if err != nil {
			return nil, err
		}
		return &rootfs{
			device: vm.Verity{Data: image.File(), Hash: tree},
			params: []string{fmt.Sprintf("pex.root=verity:/dev/vda:/dev/vdb:%d:%s", blocks, hash)},
			theirs: tree,
		}, nil
	case Block:
		return serveDisk(ctx, kill, image, ahead(image), log)
	}
	r, err := serve(ctx, kill, func(conn *net.UnixConn) error {
		fs := fusefs.New(image.Meta(), image, fusefs.Options{Log: log})
		return vhostuser.ServeFS(ctx, conn, fsTag, fs, fusefs.ServerOptions(), vhostuser.Options{Logger: log})
	})
	if err != nil {
		return nil, err
	}
	r.device, r.params = vm.VirtioFS{Tag: fsTag, Conn: r.theirs}, []string{"pex.root=virtiofs:" + fsTag, ahead(image)}
	return r, nil
}

// serveLate is serveRoot for an image that is still being opened. It becomes a disk, the one device that can be shown
// before its image is known.
func serveLate(ctx context.Context, kill context.CancelCauseFunc, o *opening, patient func(Image) Image, log *slog.Logger) (*rootfs, error) {
	d := &lateDisk{ready: make(chan struct{})}
	r, err := serveDisk(ctx, kill, d, readAhead(aheadMissing), log)
	if err != nil {
		return nil, err
	}
	r.server.Go(func() {
		if err := d.open(ctx, o, patient); err != nil && ctx.Err() == nil {
			kill(err)
		}
	})
	return r, nil
}

// ahead is how a guest is to read an image.
func ahead(image Image) (param string) {
	if image.Complete() {
		return readAhead(aheadComplete)
	}
	return readAhead(aheadMissing)
}

func readAhead(kib int) (param string) { return fmt.Sprintf("pex.readahead=%d", kib) }

// serveDisk makes a disk the root, which the guest is to read as ahead says.
func serveDisk(ctx context.Context, kill context.CancelCauseFunc, disk vhostuser.Disk, ahead string, log *slog.Logger) (*rootfs, error) {
	r, err := serve(ctx, kill, func(conn *net.UnixConn) error {
		return vhostuser.ServeBlock(ctx, conn, disk, diskID, vhostuser.Options{Logger: log})
	})
	if err != nil {
		return nil, err
	}
	r.device, r.params = vm.Block{Conn: r.theirs}, []string{"pex.root=blk:/dev/vda", ahead}
	return r, nil
}

// serve has a vhost-user device served until the VMM ends, or ctx.
func serve(ctx context.Context, kill context.CancelCauseFunc, device func(*net.UnixConn) error) (*rootfs, error) {
	conn, theirs, err := socketPair("root")
	if err != nil {
		return nil, err
	}
	r := &rootfs{conn: conn, theirs: theirs}
	r.server.Go(func() {
		defer conn.Close()
		if err := device(conn); err != nil && ctx.Err() == nil {
			kill(fmt.Errorf("serving the machine's root: %w", err))
		}
	})
	return r, nil
}

// started is called when the VMM has what it is to hold of the root, so that its end of
// a connection ends with it.
func (r *rootfs) started() {
	if r.theirs != nil {
		r.theirs.Close()
		r.theirs = nil
	}
}

// close waits until nothing serves the root any more. The machine has ended; r may
// be nil.
func (r *rootfs) close() {
	if r == nil {
		return
	}
	r.started()
	if r.conn != nil {
		r.conn.Close()
	}
	r.server.Wait()
}
