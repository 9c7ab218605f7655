package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"

	"github.com/spf13/cobra"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/cmd/internal/convert"
	"github.com/pexfs/pex/cmd/internal/embedreg"
	"github.com/pexfs/pex/lazy/ref"
)

func registryCommand() *cobra.Command {
	var listen string
	var debug bool
	cmd := &cobra.Command{
		Use:   "registry DIR",
		Short: "Serve a registry over a folder, for trials and tests",
		Long: `Registry serves the OCI distribution API over the folder DIR: push to it and pull from it with any tool. It has no
access control and speaks plain HTTP: keep it on loopback. Counts of requests and bytes are at ` + embedreg.StatsPath + `.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			level := slog.LevelWarn
			if debug {
				level = slog.LevelDebug
			}
			r, err := embedreg.Open(args[0], slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, r.Close()) }()
			l, err := net.Listen("tcp", listen)
			if err != nil {
				return fmt.Errorf("serving %s: %w", args[0], err)
			}
			fmt.Println("serving", args[0], "on", l.Addr())
			return r.Serve(cmd.Context(), l)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:5050", "address")
	cmd.Flags().BoolVar(&debug, "debug", false, "log every request")
	return cmd
}

func convertCommand() *cobra.Command {
	var o convert.Options
	var platform, hostsDir string
	var insecure, quiet, asJSON bool
	cmd := &cobra.Command{
		Use:   "convert SRC DST",
		Short: "Make an image's layers eStargz, so that it can be read before it is downloaded",
		Long: `Convert copies the image SRC to DST with every layer as eStargz, and the digests of their tables of contents in the
manifest. SRC and DST are names as docker takes them, or oci:FOLDER[:TAG]. Any registry and any tool takes the result:
its layers are gzip as before.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if platform != "" {
				p, err := ref.ParsePlatform(platform)
				if err != nil {
					return err
				}
				o.Platform = &p
			}
			src, err := ref.Parse(args[0])
			if err == nil {
				o.Source, err = cli.Reading(cmd.Context(), src, hostsDir, insecure)
			}
			if err != nil {
				return err
			}
			dst, err := ref.Parse(args[1])
			if err != nil {
				return err
			}
			o.Target.Insecure = insecure
			if dst.Transport == ref.Registry { // what is written goes to itself
				if o.Target.Auth, err = cli.Credentials(cmd.Context(), dst); err != nil {
					return err
				}
			}
			var last convert.Event
			o.Progress = func(e convert.Event) { // one line a step
				if !quiet && (e.Layer != last.Layer || e.Step != last.Step) {
					fmt.Fprintf(os.Stderr, "pexfs: %.19s %s\n", e.Layer, e.Step)
				}
				last = e
			}
			res, err := convert.Convert(cmd.Context(), args[0], args[1], o)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(res)
			}
			fmt.Printf("%s@%s: %d layers, %s as eStargz, were %s\n", args[1], res.Digest, len(res.Layers), cli.Bytes(res.TargetSize), cli.Bytes(res.SourceSize))
			return nil
		},
	}
	f := cmd.Flags()
	cli.HostsFlag(f, &hostsDir)
	f.StringVar(&platform, "platform", "", "take one image of an index: os/arch[/variant] (default all)")
	f.IntVar(&o.ChunkSize, "chunk-size", 0, "largest piece of a file that is fetched as one, in bytes (default 4 MiB)")
	f.BoolVar(&insecure, "insecure", false, "permit plain HTTP to registries that are not on this machine")
	f.BoolVarP(&quiet, "quiet", "q", false, "no progress")
	f.BoolVar(&asJSON, "json", false, "print the result as JSON")
	return cmd
}
