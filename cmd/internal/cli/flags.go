package cli

import (
	"cmp"
	"errors"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pexfs/pex/cmd/internal/size"
	"github.com/pexfs/pex/lazy"
)

// Size is a flag: see size.Bytes.
type Size = size.Bytes

// Count is a flag: a positive number.
type Count int

// String is the number; that of none is empty.
func (c *Count) String() string {
	if *c == 0 {
		return ""
	}
	return strconv.Itoa(int(*c))
}

// Type names the flag's value in usage messages.
func (c *Count) Type() string { return "int" }

// Set reads a number.
func (c *Count) Set(text string) error {
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n <= 0 {
		return errors.New("want a number from 1 to 2147483647")
	}
	*c = Count(n)
	return nil
}

// Trust is what an opening demands of an image.
type Trust struct {
	Strict     bool
	Verify     Verify
	MaxSize    Size
	MaxEntries Count
}

// Flags adds the flags of t.
func (t *Trust) Flags(f *pflag.FlagSet) {
	f.BoolVar(&t.Strict, "strict", false, "refuse an image with anything in it that unpackers disagree on")
	f.Var(&t.Verify, "verify", "chain: what is read is checked by its digest; full: all layers are read first and compared with their tables of contents")
	f.Var(&t.MaxSize, "max-size", "most that a layer may inflate to (default 256g)")
	f.Var(&t.MaxEntries, "max-entries", "most entries that a layer may have (default 5000000)")
}

// Verify is a flag: "chain" or "full".
type Verify bool

// String is the flag's value.
func (v *Verify) String() string {
	if *v {
		return "full"
	}
	return "chain"
}

// Type names the flag's value in usage messages.
func (v *Verify) Type() string { return "chain|full" }

// Set reads it.
func (v *Verify) Set(s string) error {
	switch s {
	case "chain", "full":
		*v = s == "full"
		return nil
	}
	return errors.New("want chain or full")
}

// Pull is a flag: one of lazy.Pull.
type Pull string

// String is the flag's value.
func (p *Pull) String() string { return string(cmp.Or(lazy.Pull(*p), lazy.PullMissing)) }

// Type names the flag's value in usage messages.
func (p *Pull) Type() string { return "missing|newer|always|never" }

// Set reads it.
func (p *Pull) Set(s string) error {
	v, err := lazy.ParsePull(s)
	*p = Pull(v)
	return err
}

// NetworkFlags adds the flags that say when a registry may be asked, and how.
func (o *OpenOptions) NetworkFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Var(&o.Pull, "pull", "when to ask the registry what a tag is: missing, if the cache hasn't got it; newer, each time, but go on with the cache's if that fails; always; never")
	f.BoolVar(&o.Offline, "offline", false, "ask no registry: a tag is what it was last, and the image must be complete in the cache")
	f.BoolVar(&o.Insecure, "insecure", false, "permit plain HTTP to a registry that is not on this machine")
	HostsFlag(f, &o.HostsDirs)
	cmd.MarkFlagsMutuallyExclusive("pull", "offline")
}

// HostsFlag adds the flag that names folders of hosts.toml.
func HostsFlag(f *pflag.FlagSet, dirs *string) {
	f.StringVar(dirs, "hosts-dir", "", "folders of hosts.toml, which say what servers stand for a registry (default $PEX_HOSTS_DIR, or pex/certs.d of the user and of /etc, /etc/containerd/certs.d, and docker's)")
}
