package vhostuser

import (
	"bytes"
	"encoding/binary"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Opcodes of FUSE (linux/fuse.h), which go-fuse keeps to itself.
const (
	opLookup        = 1
	opForget        = 2
	opGetattr       = 3
	opSetattr       = 4
	opReadlink      = 5
	opSymlink       = 6
	opMknod         = 8
	opMkdir         = 9
	opUnlink        = 10
	opRmdir         = 11
	opRename        = 12
	opLink          = 13
	opOpen          = 14
	opRead          = 15
	opWrite         = 16
	opStatfs        = 17
	opRelease       = 18
	opFsync         = 20
	opSetxattr      = 21
	opGetxattr      = 22
	opListxattr     = 23
	opRemovexattr   = 24
	opFlush         = 25
	opInit          = 26
	opOpendir       = 27
	opReaddir       = 28
	opReleasedir    = 29
	opFsyncdir      = 30
	opGetlk         = 31
	opSetlk         = 32
	opSetlkw        = 33
	opAccess        = 34
	opCreate        = 35
	opInterrupt     = 36
	opDestroy       = 38
	opBatchForget   = 42
	opFallocate     = 43
	opReaddirplus   = 44
	opRename2       = 45
	opLseek         = 46
	opCopyFileRange = 47
	opTmpfile       = 51
)

const (
	inHeaderSize  = int(unsafe.Sizeof(fuse.InHeader{}))
	outHeaderSize = int(unsafe.Sizeof(fuse.OutHeader{}))
	offOpcode     = 4
	offUnique     = 8 // in both headers
	offNode       = 16

	initMajor = 7
	initMinor = 12 // the least that go-fuse speaks

	setXAttrCompat = 8 // bytes of fuse_setxattr_in without FUSE_SETXATTR_EXT
)

// A nodeid and a name in the root that go-fuse keeps for itself on /dev/fuse.
const (
	reservedNode = ^uint64(0)
	reservedName = ".go-fuse-epoll-hack"
)

// fuseHeader is what is known of a request before go-fuse sees it.
type fuseHeader struct {
	opcode uint32
	unique uint64
	answer int // bytes of room that the answer may need, at least; 0 if there is none
}

// parseFUSE checks a request as far as go-fuse relies on others for it: that it is as long as it says and at least as
// long as its kind, that its kind is one a driver has reason to send, and that INIT's version is one it speaks. setxattr
// is the size of SETXATTR's fixed part.
func parseFUSE(in []byte, setxattr int) (fuseHeader, syscall.Errno) {
	if len(in) < inHeaderSize {
		return fuseHeader{}, syscall.EINVAL
	}
	h := fuseHeader{
		opcode: binary.LittleEndian.Uint32(in[offOpcode:]),
		unique: binary.LittleEndian.Uint64(in[offUnique:]),
		answer: outHeaderSize,
	}
	if h.opcode == opForget || h.opcode == opBatchForget {
		h.answer = 0
	}
	size, known := fuseInSize(h.opcode)
	if h.opcode == opSetxattr {
		size = setxattr
	}
	node := binary.LittleEndian.Uint64(in[offNode:])
	switch {
	case uint64(binary.LittleEndian.Uint32(in)) != uint64(len(in)):
		return h, syscall.EINVAL
	case !known:
		return h, syscall.ENOSYS
	case len(in) < size:
		return h, syscall.EINVAL
	case node == reservedNode:
		return h, syscall.ESTALE
	case node == fuse.FUSE_ROOT_ID && isReservedName(in[size:]):
		return h, syscall.ENOENT
	}
	switch h.opcode {
	case opInit:
		major, minor := binary.LittleEndian.Uint32(in[inHeaderSize:]), binary.LittleEndian.Uint32(in[inHeaderSize+4:])
		if major != initMajor || minor < initMinor {
			return h, syscall.EPROTO
		}
	case opRead, opReaddir, opReaddirplus:
		h.answer += int((*fuse.ReadIn)(unsafe.Pointer(&in[0])).Size)
	case opGetxattr, opListxattr:
		h.answer += int((*fuse.GetXAttrIn)(unsafe.Pointer(&in[0])).Size)
	}
	return h, 0
}

func isReservedName(payload []byte) bool {
	name, _, _ := bytes.Cut(payload, []byte{0})
	return string(name) == reservedName
}

// fail writes an answer that is an error to out and returns its length: 0 if there is no room or no answer to expect.
func (h fuseHeader) fail(out []byte, errno syscall.Errno) int {
	if h.answer == 0 || len(out) < outHeaderSize {
		return 0
	}
	binary.LittleEndian.PutUint32(out[0:], uint32(outHeaderSize))
	binary.LittleEndian.PutUint32(out[4:], uint32(-int32(errno)))
	binary.LittleEndian.PutUint64(out[offUnique:], h.unique)
	return outHeaderSize
}

// mayBlock reports whether a request reads a file's data or changes anything: that may take long. The rest is metadata,
// which for the file systems served here is in memory or in a local file.
func mayBlock(opcode uint32) bool {
	switch opcode {
	case opLookup, opForget, opGetattr, opReadlink, opOpen, opStatfs, opRelease, opGetxattr, opListxattr, opInit,
		opOpendir, opReaddir, opReleasedir, opAccess, opInterrupt, opDestroy, opBatchForget, opReaddirplus:
		return false
	}
	return true
}

// fuseInSize is the size of the fixed part of a request, header included, and whether there is such a request.
func fuseInSize(opcode uint32) (size int, known bool) {
	switch opcode {
	case opLookup, opReadlink, opSymlink, opUnlink, opRmdir, opStatfs, opRemovexattr, opDestroy:
		size = inHeaderSize
	case opForget:
		size = int(unsafe.Sizeof(fuse.ForgetIn{}))
	case opBatchForget, opRename:
		size = inHeaderSize + 8
	case opGetattr:
		size = int(unsafe.Sizeof(fuse.GetAttrIn{}))
	case opSetattr:
		size = int(unsafe.Sizeof(fuse.SetAttrIn{}))
	case opMknod:
		size = int(unsafe.Sizeof(fuse.MknodIn{}))
	case opMkdir:
		size = int(unsafe.Sizeof(fuse.MkdirIn{}))
	case opLink:
		size = int(unsafe.Sizeof(fuse.LinkIn{}))
	case opOpen, opOpendir:
		size = int(unsafe.Sizeof(fuse.OpenIn{}))
	case opRead, opReaddir, opReaddirplus:
		size = int(unsafe.Sizeof(fuse.ReadIn{}))
	case opWrite:
		size = int(unsafe.Sizeof(fuse.WriteIn{}))
	case opRelease, opReleasedir:
		size = int(unsafe.Sizeof(fuse.ReleaseIn{}))
	case opFsync, opFsyncdir:
		size = int(unsafe.Sizeof(fuse.FsyncIn{}))
	case opSetxattr:
		size = inHeaderSize + setXAttrCompat
	case opGetxattr, opListxattr:
		size = int(unsafe.Sizeof(fuse.GetXAttrIn{}))
	case opFlush:
		size = int(unsafe.Sizeof(fuse.FlushIn{}))
	case opInit:
		size = inHeaderSize + 16 // what INIT was before FUSE_INIT_EXT
	case opGetlk, opSetlk, opSetlkw:
		size = int(unsafe.Sizeof(fuse.LkIn{}))
	case opAccess:
		size = int(unsafe.Sizeof(fuse.AccessIn{}))
	case opCreate, opTmpfile:
		size = int(unsafe.Sizeof(fuse.CreateIn{}))
	case opInterrupt:
		size = int(unsafe.Sizeof(fuse.InterruptIn{}))
	case opFallocate:
		size = int(unsafe.Sizeof(fuse.FallocateIn{}))
	case opRename2:
		size = int(unsafe.Sizeof(fuse.RenameIn{}))
	case opLseek:
		size = int(unsafe.Sizeof(fuse.LseekIn{}))
	case opCopyFileRange:
		size = int(unsafe.Sizeof(fuse.CopyFileRangeIn{}))
	default:
		return 0, false
	}
	return size, true
}

// setXAttrSize is the size of SETXATTR's fixed part, given the capabilities asked for beyond go-fuse's own.
func setXAttrSize(extra uint64) int {
	if extra&fuse.CAP_SETXATTR_EXT != 0 {
		return int(unsafe.Sizeof(fuse.SetXAttrIn{}))
	}
	return inHeaderSize + setXAttrCompat
}
