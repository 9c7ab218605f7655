package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/cmd/internal/compare"
	"github.com/pexfs/pex/cmd/internal/kmount"
	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy/store"
)

func imageCommand(cacheDir *string) *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Make, check and mount EROFS image files"}
	cmd.AddCommand(imageBuildCommand(), imageCheckCommand(), imageMountCommand(cacheDir))
	return cmd
}

// checked is what `image check` says.
type checked struct {
	File     string   `json:"file"`
	Size     int64    `json:"size"`
	Inodes   uint64   `json:"inodes"`
	Root     string   `json:"root"` // Merkle root in hex
	Problems []string `json:"problems"`
}

func imageCheckCommand() *cobra.Command {
	var s buildSpec
	var asJSON, against bool
	var root string
	cmd := &cobra.Command{
		Use:   "check FILE [--against [PREFIX=]REF…]",
		Short: "Check an image file's structure, and its content against the image it was made from",
		Long: `Check verifies the whole structure of an image file: what fsck.erofs looks at and what it doesn't, as link counts, extents that
overlap, and bytes where none should be. With --root it compares the file's Merkle root (dm-verity, SHA-256, no salt). With
--against it reads every layer of REF whole, verifies digests and diffIDs, and compares all that the layers' tars say with the
file: names, types, modes, owners, times, links, attributes and contents; what tables of contents say counts for nothing. A file that
was made with --uid-shift or --pack is checked with the same options.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if against != (len(args) > 1) {
				return errors.New("--against goes with the images to compare with")
			}
			c, err := checkFile(cmd.Context(), args[0], root)
			if err != nil {
				return err
			}
			if len(c.Problems) == 0 && against {
				s.Stream = true
				err := checkAgainst(cmd.Context(), args[0], args[1:], s)
				if errors.Is(err, compare.ErrDiffer) {
					c.Problems = append(c.Problems, err.Error())
				} else if err != nil {
					return err
				}
			}
			if asJSON {
				if err := printJSON(c); err != nil {
					return err
				}
			} else {
				fmt.Printf("%s: %d inodes, %s, root %s\n", c.File, c.Inodes, cli.Bytes(c.Size), c.Root)
				for _, p := range c.Problems[min(1, len(c.Problems)):] {
					fmt.Println(" ", cli.OneLine(p))
				}
			}
			switch n := len(c.Problems); n {
			case 0:
				return nil
			case 1:
				return fmt.Errorf("checking %s: %s", args[0], c.Problems[0])
			default:
				return fmt.Errorf("checking %s: %s (and %d more)", args[0], c.Problems[0], n-1)
			}
		},
	}
	f := cmd.Flags()
	f.BoolVar(&against, "against", false, "compare with the images that follow FILE")
	f.StringVar(&root, "root", "", "the Merkle root that the file must have, in hex")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	s.flags(f)
	return cmd
}

// checkFile checks structure and root.
func checkFile(ctx context.Context, name, root string) (*checked, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("checking: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("checking: %w", err)
	}
	c := &checked{File: name, Size: st.Size(), Problems: []string{}}
	im, err := erofs.Open(f, st.Size())
	if err != nil {
		return nil, fmt.Errorf("checking %s: %w", name, err)
	}
	c.Inodes = im.Super().Inodes
	if err := erofs.Check(f, st.Size()); err != nil {
		c.Problems = append(c.Problems, problems(err)...)
	}
	if st.Size()%store.BlockSize != 0 {
		c.Problems = append(c.Problems, fmt.Sprintf("its %d bytes are not whole blocks", st.Size()))
		return c, nil
	}
	if c.Root, err = store.MerkleRoot(io.NewSectionReader(f, 0, st.Size()), st.Size()); err != nil {
		return nil, fmt.Errorf("checking %s: %w", name, err)
	}
	if root != "" && root != c.Root {
		c.Problems = append(c.Problems, fmt.Sprintf("its root is %s, not %s", c.Root, root))
	}
	return c, ctx.Err()
}

// problems takes a joined error apart.
func problems(err error) (all []string) {
	for _, line := range bytes.Split([]byte(err.Error()), []byte("\n")) {
		all = append(all, string(line))
	}
	return all
}

// checkAgainst makes the image of refs from their tars and compares the file with it.
func checkAgainst(ctx context.Context, name string, refs []string, s buildSpec) error {
	dir, err := os.MkdirTemp("", "pexfs-check-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p := cli.NewProgress("pexfs", os.Stderr, s.quiet)
	defer p.End()
	b, err := build(ctx, dir, refs, s, p)
	if err != nil {
		return err
	}
	a, err := openImageFile(name)
	if err != nil {
		return err
	}
	defer a.f.Close()
	want, err := openImageFile(b.file)
	if err != nil {
		return err
	}
	defer want.f.Close()
	return compare.Images(ctx, compare.Side{Name: "the file", Image: a.im, Rounded: true}, compare.Side{Name: "the layers", Image: want.im},
		func(n int64) { p.Step("comparing", n, 0) })
}

// imageFile is an image in a file of its own: complete, so that reading it never waits.
type imageFile struct {
	f    *os.File
	size int64
	im   *erofs.Image
}

func openImageFile(name string) (*imageFile, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("opening image: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	var im *erofs.Image
	if err == nil {
		im, err = erofs.Open(f, st.Size())
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("opening image %s: %w", name, err)
	}
	return &imageFile{f, st.Size(), im}, nil
}

// ReadAt and ReadFd make an imageFile what fusefs reads.

func (i *imageFile) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return i.f.ReadAt(p, off)
}

func (i *imageFile) ReadFd(off int64, n int) (fd uintptr, fdOff int64, ok bool) {
	return i.f.Fd(), off, off >= 0 && n > 0 && off <= i.size-int64(n)
}

func imageMountCommand(cacheDir *string) *cobra.Command {
	var s viewSpec
	var kernel, foreground bool
	cmd := &cobra.Command{
		Use:   "mount FILE DIR",
		Short: "Mount an image file: by FUSE, or by the kernel once it was checked",
		Long: `Mount shows the image FILE on the folder DIR, read-only, nosuid and nodev. By default a process of this user serves it through
FUSE; nothing in FILE can harm more than that process. With --kernel (root only) Linux mounts it itself: faster, and only after
the whole structure was checked and if nobody but its owner, who must be root or you, may change FILE.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			dir := args[1]
			if err := checkDir(dir); err != nil {
				return err
			}
			if kernel {
				return mountFile(name, dir)
			}
			if s.Dir, err = filepath.Abs(dir); err != nil {
				return err
			}
			if st, err := os.Stat(name); err != nil {
				return fmt.Errorf("opening image: %w", err)
			} else if !st.Mode().IsRegular() { // a view may look at nothing but the file
				return fmt.Errorf("opening image %s: not a regular file", name)
			}
			s.File, s.Source = name, name
			if foreground {
				return serveHere(nil, s)
			}
			return startView(cmd.Context(), *cacheDir, s)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&kernel, "kernel", false, "have the kernel mount it")
	f.BoolVar(&foreground, "foreground", false, "serve the mount in this process, until it is unmounted or interrupted")
	f.BoolVar(&s.AllowOther, "allow-other", false, "let other users enter, with the image's permissions enforced")
	f.BoolVar(&s.Debug, "debug", false, "log every request (with --foreground)")
	return cmd
}

// mountFile checks a file and has the kernel mount it.
func mountFile(name, dir string) error {
	i, err := openImageFile(name)
	if err != nil {
		return err
	}
	defer i.f.Close()
	if err := sound(i.f, func() error { return erofs.Check(i.f, i.size) }); err != nil {
		return err
	}
	return kmount.Mount(i.f, dir, name)
}
