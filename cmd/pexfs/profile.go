package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/cmd/internal/view"
	"github.com/pexfs/pex/lazy/profile"
	"github.com/pexfs/pex/lazy/ref"
)

// profileFlags say what a mount does with profiles.
type profileFlags struct {
	name string
	none bool
}

func (p *profileFlags) flags(f *pflag.FlagSet) {
	f.Var((*profileLabel)(&p.name), "profile", "fetch what the profile of this name says first, and record it where there is none")
	f.BoolVar(&p.none, "no-profile", false, "use and record no profile")
}

// profileLabel is a flag: a profile's name.
type profileLabel string

func (l *profileLabel) String() string { return string(*l) }
func (l *profileLabel) Type() string   { return "name" }

// Set takes a name of no more than profile.MaxName bytes.
func (l *profileLabel) Set(s string) error {
	if len(s) > profile.MaxName || !utf8.ValidString(s) {
		return fmt.Errorf("want at most %d bytes of UTF-8", profile.MaxName)
	}
	*l = profileLabel(s)
	return nil
}

// open is the name of the profile to look for, or nil.
func (p *profileFlags) open() *string {
	if p.none {
		return nil
	}
	return &p.name
}

// replay has the image's profile replayed, and gives what the view is to record. A mount doesn't fail for want of a hint.
func (p *profileFlags) replay(ctx context.Context, c *daemon.Client, o *daemon.Opened) *view.Record {
	if p.none {
		return nil
	}
	_ = c.Replay(ctx, o.Key, daemon.ReplayRequest{Manifest: o.Manifest, Name: p.name})
	return &view.Record{Manifest: o.Manifest, Name: p.name}
}

func profileCommand(cacheDir *string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "profile", Short: "What programs read first of an image: record, look, pass on",
		Long: `A profile says what a program reads of an image, in order. It is recorded at the first run and replayed at the
next start with an empty cache: its ranges are fetched ahead of the program. Profiles are named after the command
that 'pex run' ran; that of a mount has no name unless --profile gave it one. NAME may be several words, the
command's. A profile is trusted to choose an order, and nothing else.`,
	}
	cmd.AddCommand(profileLs(cacheDir), profileShow(cacheDir), profileExport(cacheDir), profileImport(cacheDir), profileRm(cacheDir),
		profilePush(cacheDir), profilePull(cacheDir))
	return cmd
}

// profileName is the name that words on a command line are: one as it is, several as the command that they make.
func profileName(words []string) string {
	if len(words) == 1 {
		return words[0]
	}
	return profile.Name(words)
}

// named is what a profile is called for people.
func named(name string) string {
	switch {
	case name == "":
		return "-"
	case strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return strconv.Quote(name)
	}
	return name
}

// findProfile looks up a profile of the cache by what the command line says: the image's reference or digest and the name's words, or
// the profile's id.
func findProfile(ctx context.Context, c *daemon.Client, args []string) (*daemon.ProfileSummary, error) {
	all, err := c.Profiles(ctx)
	if err != nil {
		return nil, err
	}
	image := args[0]
	var found []*daemon.ProfileSummary
	name := profileName(args[1:])
	canonical := ""
	if r, err := ref.Parse(image); err == nil {
		if r, err = r.Abs(); err == nil {
			canonical = r.String()
		}
	}
	hex := strings.TrimPrefix(image, "sha256:")
	for i := range all {
		p := &all[i]
		of := len(hex) >= 6 && strings.HasPrefix(p.Image, "sha256:"+hex)
		for _, r := range p.Refs {
			of = of || r == canonical
		}
		if of && p.Name == name || len(args) == 1 && len(image) >= 6 && strings.HasPrefix(p.ID, image) {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 0:
		return nil, &daemon.Error{Text: fmt.Sprintf("profile %s of %s: not in the cache", named(name), image), Hint: "`pexfs profile ls` lists those that are"}
	case 1:
		return found[0], nil
	}
	return nil, &daemon.Error{Text: fmt.Sprintf("profile %s of %s: %d of the cache are called so", named(name), image, len(found)), Hint: "name one by its id: `pexfs profile ls` lists them"}
}

// readProfile gets a profile of the cache.
func readProfile(ctx context.Context, c *daemon.Client, args []string) (*profile.Profile, []byte, error) {
	s, err := findProfile(ctx, c, args)
	if err != nil {
		return nil, nil, err
	}
	b, err := c.Profile(ctx, s.ID)
	if err != nil {
		return nil, nil, err
	}
	p, err := profile.Decode(b)
	return p, b, err
}

func profileLs(cacheDir *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "ls", Short: "List the cache's profiles", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := daemon.Connect(cmd.Context(), *cacheDir)
			if err != nil {
				return err
			}
			all, err := c.Profiles(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(all)
			}
			w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "IMAGE\tID\tORIGIN\tRECORDED\tRANGES\tSIZE\tNAME")
			for _, p := range all {
				refs := p.Refs
				if len(refs) == 0 {
					refs = []string{p.Image}
				}
				for _, r := range refs {
					fmt.Fprintf(w, "%s\t%.12s\t%s\t%s\t%d\t%s\t%s\n", r, p.ID, p.Origin, p.Recorded.Local().Format(time.DateTime), p.Touches, cli.Bytes(p.Bytes), named(p.Name))
				}
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func profileShow(cacheDir *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show IMAGE|ID [NAME…]", Short: "Show the ranges of a profile, in order", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := daemon.Connect(cmd.Context(), *cacheDir)
			if err != nil {
				return err
			}
			p, b, err := readProfile(cmd.Context(), c, args)
			if err != nil {
				return err
			}
			if asJSON {
				_, err := fmt.Println(string(b))
				return err
			}
			fmt.Printf("image     %s\nname      %s\nrecorded  %s\nranges    %d, %s\n\n", p.Image, named(p.Name), p.Recorded.Local().Format(time.DateTime), len(p.Touches), cli.Bytes(p.Bytes()))
			w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
			fmt.Fprintln(w, "MS\tLAYER\tOFFSET\tLENGTH\t")
			for _, t := range p.Touches {
				fmt.Fprintf(w, "%d\t%.19s\t%d\t%d\t\n", t.At.Milliseconds(), p.Layers[t.Layer], t.Off, t.N)
			}
			return w.Flush()
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print it as it is kept")
	return cmd
}

func profileExport(cacheDir *string) *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use: "export [-o FILE] IMAGE|ID [NAME…]", Short: "Write a profile to a file or standard output", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := daemon.Connect(cmd.Context(), *cacheDir)
			if err != nil {
				return err
			}
			_, b, err := readProfile(cmd.Context(), c, args)
			if err != nil {
				return err
			}
			b = append(b, '\n')
			if to == "" || to == "-" {
				_, err = os.Stdout.Write(b)
			} else {
				err = os.WriteFile(to, b, 0o666)
			}
			if err != nil {
				return fmt.Errorf("exporting profile: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVarP(&to, "output", "o", "", "file to write")
	return cmd
}

func profileImport(cacheDir *string) *cobra.Command {
	return &cobra.Command{
		Use: "import FILE…", Short: "Take profiles from files or, with -, standard input", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := daemon.Connect(cmd.Context(), *cacheDir)
			if err != nil {
				return err
			}
			for _, name := range args {
				b, err := readProfileFile(name)
				if err == nil {
					err = c.ImportProfile(cmd.Context(), b)
				}
				if err != nil {
					return fmt.Errorf("importing profile %s: %w", name, err)
				}
			}
			return nil
		},
	}
}

func readProfileFile(name string) ([]byte, error) {
	f := os.Stdin
	if name != "-" {
		var err error
		if f, err = os.Open(name); err != nil {
			return nil, err
		}
		defer f.Close()
	}
	return io.ReadAll(io.LimitReader(f, profile.MaxSize+1))
}

func profileRm(cacheDir *string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm IMAGE|ID [NAME…]", Short: "Forget a profile: the next run records it anew", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := daemon.Connect(cmd.Context(), *cacheDir)
			if err != nil {
				return err
			}
			s, err := findProfile(cmd.Context(), c, args)
			if err != nil {
				return err
			}
			return c.RemoveProfile(cmd.Context(), s.ID)
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}
