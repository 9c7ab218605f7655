package tree

// Type is what kind of file an entry or inode is.
type Type uint8

const (
	Dir Type = iota
	Regular
	Symlink
	HardLink // only of entries: an inode is never a hard link
	Char
	Block
	Fifo
)

// Time is seconds and nanoseconds since 1970, in UTC. Sec may be negative; Nsec is 0 to 999,999,999 and counts forward.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Xattr is one extended attribute. The name has its namespace ("user.mime_type"); the value is bytes.
type Xattr struct {
	Name  string
	Value []byte
}

// Entry is one entry of a layer as its tar or its TOC states it, markers (whiteouts, opaque directories) included.
type Entry struct {
	// Name and Linkname are bytes, not cleaned. Linkname is the target of a symlink, or the name a hard link is to.
	Name, Linkname string
	Type           Type
	Mode           uint32 // the low 12 bits: permissions, setuid, setgid, sticky
	UID, GID       uint32
	Size           int64 // of a regular file's content, in bytes
	Mtime          Time
	Major, Minor   uint32 // of a device
	Xattrs         []Xattr
	// Content is the layer's number for a regular file's content. It has a meaning only where Size > 0.
	Content int32
}
