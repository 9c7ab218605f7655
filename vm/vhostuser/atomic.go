package vhostuser

import (
	"sync/atomic"
	"unsafe"
)

// The words below are shared with the guest's processors: every access goes through sync/atomic, which on the
// architectures that Go runs on gives the loads acquire and the stores release order, and total order among
// themselves. There are no 16-bit atomics, so a 16-bit field is loaded as the half of its aligned 32-bit word; that
// word is always in the field's page.

// load16 loads the little-endian field at b[off:off+2]. The field must have an even address.
func load16(b []byte, off int) uint16 {
	p := unsafe.Pointer(&b[off : off+2][0])
	odd := uintptr(p) & 2
	return uint16(atomic.LoadUint32((*uint32)(unsafe.Add(p, -int(odd)))) >> (8 * odd))
}

// store16 stores the field at b[off:off+2], which must have an even address. It is not ordered by itself.
func store16(b []byte, off int, v uint16) {
	*(*uint16)(unsafe.Pointer(&b[off : off+2][0])) = v
}

// store32 stores the word at b[off:off+4], which must be aligned.
func store32(b []byte, off int, v uint32) {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&b[off : off+4][0])), v)
}
