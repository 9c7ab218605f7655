// Package vhostuser is the device side (the back end) of the vhost-user protocol: it gives a virtual machine
// monitor (the front end) virtio devices that are served by this process out of the guest's shared memory. [Serve]
// is the transport, for any [Device]; [ServeFS] is the virtio-fs device over a file system of go-fuse, [ServeBlock] the
// virtio-blk device over a disk that may not be all there yet.
//
// It follows QEMU's docs/interop/vhost-user.rst and the VIRTIO 1.2 specification: split rings (section 2.7),
// indirect descriptors, event indices, the block device (5.2), the file system device (5.11). Of the protocol's features it offers MQ,
// REPLY_ACK, RESET_DEVICE, CONFIGURE_MEM_SLOTS and, where a device wants it, CONFIG. It does not offer STATUS: front
// ends that have it clear the status whenever the machine is paused, which cannot be told from a reset of the device.
// There is no dirty log (so no live migration), no in-flight buffer (so no reconnection), no packed ring, no IOMMU.
// The host must be little-endian, as virtio is.
//
// # Hostile guests
//
// The guest writes its memory while it is read here. Descriptors, indirect tables and request bytes are therefore
// copied to private memory before anything looks at them, chains are bounded in count and bytes, every address is
// checked against the memory table, and a device sees private memory only, for its answers too: what a file system
// verifies in the buffer it was given cannot change under it. The answer is copied to the guest, at the addresses the
// guest named, when it is complete; so a request that takes long holds no guest memory, and the table may change
// meanwhile. Only an answer that needs no look at it goes straight from a file of the host to the guest: see [FileDevice].
//
// Memory that is not sealed against shrinking (memfd_create(2), F_SEAL_SHRINK) is refused, since touching what was cut
// off is SIGBUS. Should a page fail all the same, the fault is turned into a panic and ends this device alone, as does
// any other panic under a request: see [PanicError].
//
// A ring with a malformed entry is broken: it stays still until the driver or the front end starts it again.
//
// # Rings and goroutines
//
// Each started ring has one goroutine, which waits for the guest's kicks, takes requests off the ring and answers
// those that cannot wait for anything (see [FileDevice], [Device].MayBlock) by itself, with one notification for as many as it found.
// The others run in goroutines of their own, at most Options.InFlight of them per ring; a guest that asks for more
// waits.
//
// When the front end stops a ring (it does to pause the machine and to power it off) it is answered at once, whatever
// is in flight. Answers that become ready while the ring is stopped are kept. If the ring goes on where it stopped,
// they are delivered; if it starts afresh, they are dropped and what still runs is cancelled.
//
// Descriptors that arrive are shared with the front end, file status flags included, so these are never changed:
// kicks are waited for with epoll, edge triggered, and never read.
package vhostuser
