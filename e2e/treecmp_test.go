package e2e

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// listing is a folder as path -> all that a merged tree must get right. Times are in seconds: a table of contents rounds them.
func listing(t *testing.T, root string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	inodes := make(map[uint64][]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(path, root)
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		s := fmt.Sprintf("mode %o owner %d:%d", st.Mode, st.Uid, st.Gid)
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			sum, err := sha(path)
			if err != nil {
				return err
			}
			s += fmt.Sprintf(" size %d mtime %d sha256 %s", st.Size, st.Mtim.Sec, sum)
		case syscall.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			s += fmt.Sprintf(" mtime %d -> %s", st.Mtim.Sec, target)
		case syscall.S_IFCHR, syscall.S_IFBLK:
			s += fmt.Sprintf(" mtime %d rdev %x", st.Mtim.Sec, st.Rdev)
		case syscall.S_IFDIR:
			if rel != "" { // nothing lists the root: what an extraction leaves there is the extractor's
				s += fmt.Sprintf(" mtime %d", st.Mtim.Sec)
			}
		}
		if st.Mode&syscall.S_IFMT != syscall.S_IFDIR && st.Nlink > 1 {
			inodes[st.Ino] = append(inodes[st.Ino], rel)
		}
		x, err := xattrs(path)
		if err != nil {
			return err
		}
		out[rel] = s + x
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, names := range inodes {
		slices.Sort(names)
		for _, n := range names {
			out[n] += " linked " + strings.Join(names, " ")
		}
	}
	return out
}

func sha(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

func xattrs(path string) (string, error) {
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, b)
	if err != nil {
		return "", fmt.Errorf("listing attributes of %s: %w", path, err)
	}
	names := strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00")
	slices.Sort(names)
	s := ""
	for _, name := range names {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, b)
		if err != nil {
			return "", fmt.Errorf("reading attribute %s of %s: %w", name, path, err)
		}
		s += fmt.Sprintf(" %s=%x", name, b[:n])
	}
	return s, nil
}

// same compares a mount with the tree that umoci made of the same image.
func same(t *testing.T, want map[string]string, root string) {
	t.Helper()
	if d := cmp.Diff(want, listing(t, root)); d != "" {
		t.Errorf("%s, -umoci +ours:\n%.4000s", root, d)
	}
}
