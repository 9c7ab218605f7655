// Package erofs lays out, writes, reads and checks EROFS images.
//
// A Layout gives every content of a merged tree its place and holds all metadata, before a byte of content is known: the
// image can be mounted when the metadata is written, and contents filled in afterwards in any order. It writes plain images; package
// compress makes compressed ones of them.
//
// # Layout version 1
//
// From these rules anyone can make the same bytes; a test does. The format is that of Linux, fs/erofs/erofs_fs.h, with blocks of 4 KiB.
//
//   - Block 0 has the superblock: checksum and mtime are the only features, times are 0, the UUID is the caller's.
//   - Contents follow from 2 MiB on: that of the top layer first, then by the layer's own numbers, at their first visible occurrence,
//     identical ones once. Those of 2 MiB and more begin at the next multiple of 2 MiB, others at the next of 4 KiB. They are never
//     inline: they come later than metadata, and DAX maps whole pages. An empty file has none.
//   - The metadata begins in the next block. The image is padded to a multiple of 2 MiB. All that nothing uses is zero.
//   - Inodes come in the order of the names, directories breadth first, names sorted by their bytes; one of several names at its
//     first. They are numbered so from 1 on (i_ino). The root's nid is 1; each other begins in the slot of 32 bytes behind the last.
//   - Inodes are extended (64 bytes). Attributes are behind the inode, sorted by name, never shared; those whose prefix has no
//     number are left out.
//   - Directories have "." and ".." in their sorted places, and as many names in each block as fit.
//   - The end of a directory and of a symlink's target, what is behind the last whole block, is inline if inode, attributes and that fit
//     into one block together: into this one, or else the next, where the inode then begins. The root doesn't move for that. Nor is an
//     inode without its attributes cut by a block's end.
//   - What of directories and targets isn't inline is in blocks behind all inodes, in the inodes' order.
//
// Where Linux and this package's reader are satisfied with less, Check is not: it accepts images of layout version 1, and those
// that package compress makes of them.
//
// # Hostile images
//
// Images that are read are taken for hostile: every offset is checked, no size is believed before memory is taken for it, no call takes
// more steps than what it reads has bytes. Nothing is kept but the superblock and some decompressed clusters. An Image may be read
// concurrently.
package erofs
