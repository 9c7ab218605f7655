package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/spf13/cobra"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/lazy/profile"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/registry"
)

const (
	maxPulled = 64       // profiles taken by one pull
	maxInline = 64 << 10 // bytes of a profile that its artifact's manifest holds itself, which saves readers a round trip
)

// beside is the repository of an image in a registry.
type beside struct {
	ref  ref.Ref
	opts registry.Options
}

// besideOf is the reference of an image that profiles may be beside.
func besideOf(image string) (ref.Ref, error) {
	r, err := ref.Parse(image)
	if err == nil && r.Transport != ref.Registry {
		err = fmt.Errorf("profiles of %s: it is not in a registry", r)
	}
	return r, err
}

// toBeside opens the registry itself, to be written to, and fromBeside what stands for it, too.
func toBeside(ctx context.Context, image string, insecure bool) (*beside, error) {
	r, err := besideOf(image)
	if err != nil {
		return nil, err
	}
	auth, err := cli.Credentials(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("finding credentials for %s: %w", r, err)
	}
	return &beside{r, registry.Options{Auth: auth, Insecure: insecure, UserAgent: "pex"}}, nil
}

func fromBeside(ctx context.Context, image, hostsDir string, insecure bool) (*beside, error) {
	r, err := besideOf(image)
	if err != nil {
		return nil, err
	}
	o, err := cli.Reading(ctx, r, hostsDir, insecure)
	return &beside{r, o}, err
}

// manifest is the descriptor of the manifest with a digest, as the repository has it.
func (b *beside) manifest(ctx context.Context, digest string) (v1.Descriptor, error) {
	at := b.ref
	at.Name = b.ref.Name.Context().Digest(digest)
	repo, err := registry.Open(at, b.opts)
	if err != nil {
		return v1.Descriptor{}, err
	}
	return repo.Resolve(ctx)
}

// image is the image's own manifest for a platform.
func (b *beside) image(ctx context.Context, repo *registry.Repo, p ref.Platform) (v1.Descriptor, error) {
	d, err := repo.Resolve(ctx)
	for depth := 0; err == nil && d.MediaType.IsIndex() && depth < 3; depth++ {
		var raw []byte
		if raw, err = repo.Manifest(ctx, d); err == nil {
			var ix v1.IndexManifest
			if err = json.Unmarshal(raw, &ix); err == nil {
				d, err = ref.Select(p, ix.Manifests)
			}
		}
	}
	return d, err
}

// push puts a profile beside its image.
func (b *beside) push(ctx context.Context, p *profile.Profile, encoded []byte) (v1.Hash, error) {
	subject, err := b.manifest(ctx, p.Image)
	if err != nil {
		return v1.Hash{}, err
	}
	repo := b.ref.Name.Context()
	if b.opts.Insecure {
		if repo.Registry, err = name.NewRegistry(repo.RegistryStr(), name.Insecure); err != nil {
			return v1.Hash{}, err
		}
	}
	pusher, err := remote.NewPusher(remote.WithAuth(authn.FromConfig(b.opts.Auth)), remote.WithTransport(b.opts.RoundTripper(repo)))
	if err != nil {
		return v1.Hash{}, err
	}
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: profile.ArtifactType, Subject: &subject,
		Annotations: map[string]string{
			profile.NameAnnotation:             p.Name,
			"org.opencontainers.image.created": p.Recorded.UTC().Format(time.RFC3339),
		},
		Layers: make([]v1.Descriptor, 1),
	}
	empty := []byte("{}") // image specification, "Guidelines for Artifact Usage"
	if m.Config, err = describe(types.OCIEmptyJSON, empty); err != nil {
		return v1.Hash{}, err
	}
	if m.Layers[0], err = describe(profile.MediaType, encoded); err != nil {
		return v1.Hash{}, err
	}
	for _, l := range []v1.Layer{static.NewLayer(empty, types.OCIEmptyJSON), static.NewLayer(encoded, profile.MediaType)} {
		if err := pusher.Upload(ctx, repo, l); err != nil {
			return v1.Hash{}, err
		}
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return v1.Hash{}, err
	}
	digest, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return v1.Hash{}, err
	}
	return digest, pusher.Put(ctx, repo.Digest(digest.String()), document(raw))
}

// describe gives a blob's descriptor, with its bytes where they are few.
func describe(mt types.MediaType, b []byte) (v1.Descriptor, error) {
	digest, size, err := v1.SHA256(bytes.NewReader(b))
	d := v1.Descriptor{MediaType: mt, Digest: digest, Size: size}
	if size <= maxInline {
		d.Data = b
	}
	return d, err
}

// document is an OCI manifest as remote.Pusher takes it.
type document []byte

func (d document) RawManifest() ([]byte, error)        { return d, nil }
func (d document) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

func profilePush(cacheDir *string) *cobra.Command {
	var insecure, all bool
	cmd := &cobra.Command{
		Use: "push [--all] REF [NAME…]", Short: "Put a profile beside its image in the registry",
		Long: `Push makes an OCI artifact of a profile, with the image as its subject. Whoever mounts or runs the image then with
an empty cache finds it. The image itself isn't changed.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			to, err := toBeside(ctx, args[0], insecure)
			if err != nil {
				return err
			}
			c, err := daemon.Connect(ctx, *cacheDir)
			if err != nil {
				return err
			}
			var ids []string
			if all {
				list, err := c.Profiles(ctx)
				if err != nil {
					return err
				}
				for _, s := range list {
					if slices.Contains(s.Refs, to.ref.String()) {
						ids = append(ids, s.ID)
					}
				}
			} else {
				s, err := findProfile(ctx, c, args)
				if err != nil {
					return err
				}
				ids = []string{s.ID}
			}
			for _, id := range ids {
				b, err := c.Profile(ctx, id)
				if err != nil {
					return err
				}
				p, err := profile.Decode(b)
				if err != nil {
					return err
				}
				digest, err := to.push(ctx, p, b)
				if err != nil {
					return fmt.Errorf("pushing profile %s of %s: %w", named(p.Name), args[0], err)
				}
				fmt.Printf("%s@%s: %s, %s\n", to.ref.Name.Context(), digest, named(p.Name), cli.Bytes(int64(len(b))))
			}
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVar(&all, "all", false, "all that the cache has of the image")
	cmd.Flags().BoolVar(&insecure, "insecure", false, "permit plain HTTP to a registry that is not on this machine")
	return cmd
}

func profilePull(cacheDir *string) *cobra.Command {
	var insecure bool
	var hostsDir string
	var platform string
	cmd := &cobra.Command{
		Use: "pull REF [NAME…]", Short: "Take the profiles that are beside an image, or one of them", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			from, err := fromBeside(ctx, args[0], hostsDir, insecure)
			if err != nil {
				return err
			}
			p := ref.DefaultPlatform()
			if platform != "" {
				if p, err = ref.ParsePlatform(platform); err != nil {
					return err
				}
			}
			c, err := daemon.Connect(ctx, *cacheDir)
			if err != nil {
				return err
			}
			want := func(string) bool { return true }
			if len(args) > 1 {
				want = func(name string) bool { return name == profileName(args[1:]) }
			}
			n, err := from.pull(ctx, c, p, want)
			if err == nil && n == 0 {
				err = errors.New("none is beside it")
			}
			if err != nil {
				return fmt.Errorf("pulling profiles of %s: %w", args[0], err)
			}
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVar(&platform, "platform", "", "of an image for several: os/arch[/variant] (default this machine's)")
	cli.HostsFlag(cmd.Flags(), &hostsDir)
	cmd.Flags().BoolVar(&insecure, "insecure", false, "permit plain HTTP to a registry that is not on this machine")
	return cmd
}

// pull imports the profiles beside an image whose names are wanted, and tells how many.
func (b *beside) pull(ctx context.Context, c *daemon.Client, p ref.Platform, want func(name string) bool) (int, error) {
	repo, err := registry.Open(b.ref, b.opts)
	if err != nil {
		return 0, err
	}
	image, err := b.image(ctx, repo, p)
	if err != nil {
		return 0, err
	}
	list, err := daemon.ListArtifacts(ctx, repo, image.Digest)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, d := range list[:min(len(list), maxPulled)] {
		if !want(d.Annotations[profile.NameAnnotation]) {
			continue
		}
		pr, err := daemon.ReadArtifact(ctx, repo, d, image.Digest.Hex)
		if err != nil {
			return n, err
		}
		encoded, err := pr.Encode()
		if err != nil {
			return n, err
		}
		if err := c.ImportProfile(ctx, encoded); err != nil {
			return n, err
		}
		fmt.Printf("%s: %d ranges, %s\n", named(pr.Name), len(pr.Touches), cli.Bytes(pr.Bytes()))
		n++
	}
	return n, nil
}
