// Package tree merges the entries of image layers into one frozen directory tree.
//
// A Builder applies layers bottom first, entry by entry, as an extraction to one root directory would: parents are resolved
// through symlinks inside the root, a later entry of a name replaces an earlier one, hard links name the inode that is there
// at that moment. Whiteouts and opaque markers (OCI image-spec, layer.md) act on what lower layers gave and on
// nothing that their own layer adds. The result is a Tree, which never changes and may be read concurrently.
//
// Refused, with the entry's name: markers and hard links that mean nothing, names that no file system takes, more inodes
// than allowed. Names that climb above the root are clamped to it, unless Options.Strict is set.
package tree
