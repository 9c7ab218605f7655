// Package treetest is the specification of merging by example: a table of layers and of the trees that they must make.
//
// The cases are testdata/*.txtar; testdata/README.md lists them by the rule that they show. Run puts them, and a few that are
// generated, through an implementation: package tree itself, or tars, eStargz and zstd:chunked layers that are read and merged.
//
// # A case
//
// A case begins with a sentence of what it shows. Its sections are the layers, bottom first, whatever their names are; and what must
// come of them:
//
//	-- layer0 --
//	dir etc 755
//	file etc/motd 644 hello
//	-- layer1 --
//	file etc/.wh.motd 644
//	link etc/also etc/motd
//	-- want --       the listing of the tree, or
//	-- error --      what is wrong with the last entry of the last layer, as the Err of a tree.EntryError
//	-- ambiguous --  tree.Tree.Ambiguous, a line each; without the section there must be none
//
// A layer's line is an entry:
//
//	dir NAME MODE
//	file NAME MODE [CONTENT]          CONTENT is the content itself; without it the file is empty
//	symlink NAME TARGET               of mode 777
//	link NAME TARGET                  a hard link
//	fifo NAME MODE
//	char NAME MODE MAJOR:MINOR
//	block NAME MODE MAJOR:MINOR
//	other NAME MODE                   of no type that there is
//
// and has as many of these behind it as it needs:
//
//	uid=N gid=N mode=MODE
//	mtime=SECONDS[.NANOSECONDS]       nine digits, which count forward also from negative seconds
//	size=N                            zeros follow CONTENT up to this size: a tar may have them as holes
//	xattr=NAME:VALUE
//
// A link that doesn't say otherwise has the mode, owner and time that the entry of its target's name has, as in a tar.
// Names and values may be quoted as in Go, and are where they hold a space or are no UTF-8. {TEXT*N} is TEXT N times. A line that
// begins with # is a comment.
//
// # A listing
//
// A listing is a walk through the tree, names sorted by their bytes. Each inode is listed in the same form at its first path, with
// mode, then what differs from root's, time 0, and one name: "nlink=N" is the number of its names. "PATH = FIRST" is a
// further name. Contents of more than 1 MiB are listed by their size alone.
package treetest
