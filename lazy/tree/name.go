package tree

import (
	"errors"
	"fmt"
	"strings"
)

// Limits of names, in bytes.
const (
	maxName = 255  // in a directory, as Linux has it
	maxPath = 4096 // from the root, where symlinks are followed, with a slash between names
)

// split cleans a name into its components, which are good until the next call.
func (b *Builder) split(name string) (parts []string, climbs bool) {
	b.parts, climbs = split(b.parts[:0], name)
	return b.parts, climbs
}

// split appends the components of a name to parts, which is empty. "." and empty ones go; ".." takes the one before away. climbs says
// that it would have left the root.
func split(parts []string, name string) (_ []string, climbs bool) {
	for p := range strings.SplitSeq(name, "/") {
		switch {
		case p == "" || p == ".":
		case p == "..":
			if len(parts) == 0 {
				climbs = true
			} else {
				parts = parts[:len(parts)-1]
			}
		default:
			parts = append(parts, p)
		}
	}
	return parts, climbs
}

// checkName checks the components of an entry's name. A whiteout is longer than what it removes may be.
func checkName(name string, parts []string) error {
	if strings.IndexByte(name, 0) >= 0 {
		return errors.New("a name with a zero byte")
	}
	for i, p := range parts {
		removes, isWhiteout := strings.CutPrefix(p, whiteout)
		switch {
		case len(p) <= maxName:
		case i < len(parts)-1 || !isWhiteout:
			return fmt.Errorf("a name with a component of %d bytes, more than %d", len(p), maxName)
		case len(removes) > maxName:
			return fmt.Errorf("a whiteout of a name of %d bytes, more than %d", len(removes), maxName)
		}
	}
	return nil
}
