// Package erofs lays out, writes, reads and checks uncompressed EROFS images.
//
// A Layout gives every content of a merged tree its place and holds all metadata, before a byte of content is known: the
// image can be mounted when the metadata is written, and contents filled in afterwards in any order.
//
// Layout version 1: the superblock in block 0; contents from 2 MiB on, in the order (top layer first, then the layer's own
// numbers) of their first visible occurrence, identical ones once, those of 2 MiB and more on a multiple of 2 MiB,
// others on 4 KiB; then the metadata; the image is padded with zeros to a multiple of 2 MiB. File contents are never inline
// (they come later than metadata, and DAX maps whole pages); symlink targets and the last blocks of directories are,
// for they are metadata, where they fit into the block with their inode and its attributes; else they go to blocks behind all
// inodes. Inodes are extended and cross no block's end, the root's nid is 1, and those of a directory's names follow
// each other, directories breadth first. A file of several names has one inode. Extended attributes lie in the inode.
//
// Where Linux and this package's reader are satisfied with less, Check is not: it accepts layout version 1 only.
//
// Images that are read are taken for hostile: every offset is checked, no loop is unbounded, nothing is cached. An Image may be
// read concurrently.
package erofs
