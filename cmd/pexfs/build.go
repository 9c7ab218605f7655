package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/erofs/compress"
	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/registry"
	"github.com/pexfs/pex/lazy/store"
)

// buildSpec is how an image file is made.
type buildSpec struct {
	cli.Trust
	Stream   bool
	platform string
	insecure bool
	hostsDir string
	quiet    bool
	shift    uint32
	pack     bool
}

func (s *buildSpec) flags(f *pflag.FlagSet) {
	f.StringVar(&s.platform, "platform", "", "of an image for several: os/arch[/variant] (default this machine's)")
	cli.HostsFlag(f, &s.hostsDir)
	f.BoolVar(&s.insecure, "insecure", false, "permit plain HTTP to a registry that is not on this machine")
	f.Uint32Var(&s.shift, "uid-shift", 0, "add this to every owner, in attributes too: for guests in a user namespace")
	f.BoolVar(&s.pack, "pack", false, "several images in one, each below its PREFIX (default the last part of its name)")
	f.BoolVarP(&s.quiet, "quiet", "q", false, "no progress")
	s.Trust.Flags(f)
}

// built is an image in a cache folder that nobody else uses.
type built struct {
	file  string
	im    *lazy.Image
	cache *lazy.Cache
	st    *store.Store
}

// buildResult is what `image build` says.
type buildResult struct {
	File   string `json:"file"`
	Size   int64  `json:"size"`
	Inodes int64  `json:"inodes"`
	Root   string `json:"root"` // Merkle root in hex
	Verity string `json:"verity,omitempty"`
	Plain  int64  `json:"plain,omitempty"` // bytes before compression
}

func imageBuildCommand() *cobra.Command {
	var s buildSpec
	var out, verity, algorithm string
	var level int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "build [PREFIX=]REF… -o FILE",
		Short: "Make an image file in one go, without daemon and cache",
		Long: `Build makes the EROFS image of REF as FILE: the same bytes as a completed mount of it has in the cache. Linux mounts it, and so do
` + "`pexfs image mount`" + ` and a VM's pmem. With --pack it makes one image of several, with contents that they share stored once.
With --compress the image is for storing and sending: smaller, and not for pmem with DAX.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if out == "" {
				return errors.New("building an image: name its file with -o")
			}
			if st, err := os.Stat(out); err == nil && !st.Mode().IsRegular() {
				return fmt.Errorf("building %s: there is something that isn't a file", out)
			}
			algo, err := compress.ParseAlgorithm(algorithm)
			if err != nil && algorithm != "" {
				return err
			}
			if out, err = filepath.Abs(out); err != nil {
				return err
			}
			// beside the result, where there must be room for it anyway
			dir, err := os.MkdirTemp(filepath.Dir(out), ".pexfs-build-*")
			if err != nil {
				return fmt.Errorf("building %s: %w", out, err)
			}
			defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
			p := cli.NewProgress("pexfs", os.Stderr, s.quiet)
			defer p.End()
			b, err := build(cmd.Context(), filepath.Join(dir, "cache"), args, s, p)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, b.Close()) }()
			info := b.im.Info()
			res := buildResult{File: out, Size: info.Size, Inodes: info.Inodes, Root: b.im.Root(), Verity: verity}
			file := b.file
			if algorithm != "" {
				res.Plain = info.Size
				file = filepath.Join(dir, "compressed")
				if res.Size, err = compressImage(cmd.Context(), b.file, file, compress.Options{Algorithm: algo, Level: level}, p); err != nil {
					return err
				}
			}
			if err := finish(file, &res, info.UUID, dir); err != nil {
				return fmt.Errorf("building %s: %w", out, err)
			}
			p.End()
			for _, d := range info.Dropped {
				fmt.Fprintf(os.Stderr, "pexfs: warning: EROFS has no place for attribute %s\n", d)
			}
			if asJSON {
				return printJSON(res)
			}
			fmt.Printf("%s: %d inodes, %s, root %s\n", out, res.Inodes, cli.Bytes(res.Size), res.Root)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&out, "output", "o", "", "the image's file; one that is there is replaced when the image is complete")
	f.StringVar(&verity, "verity", "", "also write the Merkle tree to this file, as a dm-verity hash device")
	f.StringVar(&algorithm, "compress", "", "compress contents: lz4 or zstd")
	f.IntVar(&level, "level", 0, "of compression (default the algorithm's)")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	s.flags(f)
	return cmd
}

// finish gives the file its mode, its place and, if wanted, its Merkle tree.
func finish(file string, res *buildResult, uuid [16]byte, dir string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	tree := filepath.Join(dir, "verity")
	if res.Verity != "" || res.Plain != 0 {
		if res.Root, err = store.WriteMerkle(tree, f, res.Size, uuid); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	for from, to := range map[string]string{tree: res.Verity, file: res.File} {
		if to == "" {
			continue
		}
		if err := os.Chmod(from, 0o644); err != nil {
			return err
		}
		if err := os.Rename(from, to); err != nil {
			return err
		}
	}
	return nil
}

func compressImage(ctx context.Context, from, to string, o compress.Options, p *cli.Progress) (size int64, err error) {
	in, err := openImageFile(from)
	if err != nil {
		return 0, err
	}
	defer in.f.Close()
	out, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, fmt.Errorf("compressing: %w", err)
	}
	o.Progress = func(done, total int64) { p.Step("compressing", done, total) }
	size, err = compress.Write(ctx, out, in.im, o)
	return size, errors.Join(err, out.Close())
}

// Close gives the cache folder up.
func (b *built) Close() error { return errors.Join(b.cache.Close(), b.st.Close()) }

// build makes an image in a cache folder of its own and completes it.
func build(ctx context.Context, dir string, refs []string, s buildSpec, p *cli.Progress) (*built, error) {
	if len(refs) > 1 && !s.pack {
		return nil, errors.New("building an image: of several images one is made with --pack")
	}
	o := lazy.OpenOptions{Platform: ref.DefaultPlatform(), Strict: s.Strict, Verify: bool(s.Verify), Stream: s.Stream, MaxSize: int64(s.MaxSize), MaxEntries: int(s.MaxEntries), Progress: p.Event}
	if s.platform != "" {
		var err error
		if o.Platform, err = ref.ParsePlatform(s.platform); err != nil {
			return nil, err
		}
	}
	var parts []lazy.Part
	transport := registry.NewTransport()
	dirs, err := cli.HostsDirs(s.hostsDir)
	if err != nil {
		return nil, err
	}
	for _, name := range refs {
		part, err := s.part(ctx, name)
		if err != nil {
			return nil, err
		}
		if part.Repo, err = daemon.OpenRepo(ctx, part.Ref, daemon.RepoOptions{Insecure: s.insecure, HostsDirs: dirs, Transport: transport}); err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	st, err := store.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := st.Lock(); err != nil {
		return nil, err
	}
	b := &built{st: st, cache: lazy.NewCache(st, lazy.Options{Once: true})}
	if b.im, err = b.cache.Pack(ctx, parts, s.shift, o); err == nil {
		err = b.fill(ctx, p)
	}
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	b.file = b.im.File()
	return b, nil
}

// part reads an argument: PREFIX=REF, or REF.
func (s *buildSpec) part(ctx context.Context, arg string) (lazy.Part, error) {
	var part lazy.Part
	prefix, name, named := strings.Cut(arg, "=")
	if !named || strings.ContainsAny(prefix, ":@") {
		prefix, name, named = "", arg, false
	}
	r, err := ref.Parse(name)
	if err != nil {
		return part, err
	}
	if part.Ref, err = r.Abs(); err != nil {
		return part, err
	}
	switch {
	case named && !s.pack:
		return part, fmt.Errorf("building an image: a prefix (%s) goes with --pack", prefix)
	case named:
		part.Prefix = prefix
	case s.pack:
		part.Prefix = shortName(part.Ref)
	}
	return part, nil
}

// shortName is the last part of an image's name, without tag.
func shortName(r ref.Ref) string {
	if r.Transport == ref.OCI {
		return filepath.Base(r.Dir)
	}
	return filepath.Base(r.Name.Context().RepositoryStr())
}

// fill completes the image, showing progress.
func (b *built) fill(ctx context.Context, p *cli.Progress) error {
	end := make(chan error, 1)
	go func() { end <- b.im.Fill(ctx) }()
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case err := <-end:
			return err
		case <-t.C:
			p.Step("completing", b.im.Present(), b.im.Info().Size)
		}
	}
}
