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

// fsTag names the virtio-fs device to the guest.
const fsTag = "pexroot"

// rootfs is the root of one machine, and what serves it.
type rootfs struct {
	device vm.Rootfs
	param  string // tells PID 1 where its root is
	conn   *net.UnixConn
	theirs *os.File // what only the VMM is to hold, or nil
	server sync.WaitGroup
}

// serveRoot makes image the root of a machine whose life is ctx. A root that can
// no longer be served ends the machine by kill; what a reader of it can't be told is
// logged.
func serveRoot(ctx context.Context, kill context.CancelCauseFunc, image Image, root Root, log *slog.Logger) (*rootfs, error) {
	if root == Pmem {
		return &rootfs{
			device: vm.Pmem{File: image.File(), Size: image.Size()},
			param:  "pex.root=pmem:/dev/pmem0",
		}, nil
	}
	if root == Verity {
		tree, blocks, hash, err := image.Proof()
		if err != nil {
			return nil, err
		}
		return &rootfs{
			device: vm.Verity{Data: image.File(), Hash: tree},
			param:  fmt.Sprintf("pex.root=verity:/dev/vda:/dev/vdb:%d:%s", blocks, hash),
			theirs: tree,
		}, nil
	}
	conn, theirs, err := socketPair("root")
	if err != nil {
		return nil, err
	}
	r := &rootfs{
		device: vm.VirtioFS{Tag: fsTag, Conn: theirs},
		param:  "pex.root=virtiofs:" + fsTag,
		conn:   conn,
		theirs: theirs,
	}
	fs := fusefs.New(image.Meta(), image, fusefs.Options{Log: log})
	r.server.Go(func() {
		defer conn.Close()
		err := vhostuser.ServeFS(ctx, conn, fsTag, fs, fusefs.ServerOptions(), vhostuser.Options{Logger: log})
		if err != nil && ctx.Err() == nil {
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
