// Package tree merges the entries of image layers into one frozen directory tree.
//
// A Builder applies layers bottom first, entry by entry, as an extraction to one root directory would: parents are resolved
// through symlinks inside the root, a later entry of a name replaces an earlier one, hard links name the inode that is there
// at that moment. Whiteouts and opaque markers (OCI image-spec, layer.md) act on what lower layers gave and on
// nothing that their own layer adds. The result is a Tree, which never changes and may be read concurrently.
//
// Names that climb above the root are clamped to it. What unpackers decide in different ways is decided, and told as an
// Ambiguity: a caller that wants no such layer refuses a Tree that has any.
//
// Refused, with the layer and the entry (EntryError): markers and hard links that mean nothing, names, symlinks, devices and attributes
// that Linux would not take, more inodes than allowed, and symlinks that take long to follow. Memory is bounded by
// Options.MaxInodes and by what the entries have of names and attributes; nothing recurses, and no path is longer than 4,096 bytes.
package tree
