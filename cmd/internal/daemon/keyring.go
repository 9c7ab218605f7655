package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	"github.com/pexfs/pex/cmd/internal/confine"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/registry"
)

// A daemon that is confined runs no programs. Where the user's files name some that know credentials, it has started a process before that
// runs them: the keyring, asked for a repository's in a line of JSON on its standard input. It is needed when nobody who opens an image hands
// credentials over: when views and machines go on with a daemon that has just been started.
type keyring struct {
	mu      sync.Mutex // held while it is asked
	in, out *os.File
	answers *json.Decoder // of out
	dead    error         // nothing more comes
}

// keyringTime is how long a program may take to tell credentials.
const keyringTime = 30 * time.Second

// keyringQuestion is a line of what a keyring is asked. A server's name may have no dot in it, and stand in no reference then.
type keyringQuestion struct {
	Registry   string `json:"registry"`
	Repository string `json:"repository"`
}

// keyringAnswer is a line of what a keyring says.
type keyringAnswer struct {
	Auth  authn.AuthConfig `json:"auth"`
	Error string           `json:"error,omitempty"`
}

// startKeyring starts a keyring if there are programs to run; else it is nil, and files are read.
func startKeyring() (*keyring, error) {
	if !registry.Helpers() {
		return nil, nil
	}
	cmd := exec.Command("/proc/self/exe", "daemon", keyringUse)
	cmd.Stderr = os.Stderr
	asks, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("starting the keyring: %w", err)
	}
	defer asks.Close()
	out, tells, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting the keyring: %w", err), in.Close())
	}
	defer tells.Close()
	cmd.Stdin, cmd.Stdout = asks, tells
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the keyring: %w", err), in.Close(), out.Close())
	}
	go cmd.Wait() // it ends when in is closed, and then has nothing to tell
	return &keyring{in: in, out: out, answers: json.NewDecoder(out)}, nil
}

// credentials asks for those of a reference's registry.
func (k *keyring) credentials(ctx context.Context, r ref.Ref) (authn.AuthConfig, error) {
	if k == nil || r.Transport != ref.Registry {
		return registry.Credentials(ctx, r)
	}
	q := keyringQuestion{Registry: r.Name.Context().RegistryStr(), Repository: r.Name.Context().RepositoryStr()}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dead != nil {
		return authn.AuthConfig{}, k.dead
	}
	var a keyringAnswer
	err := k.out.SetReadDeadline(time.Now().Add(keyringTime))
	if err == nil {
		err = json.NewEncoder(k.in).Encode(q)
	}
	if err == nil {
		err = k.answers.Decode(&a)
	}
	if err != nil {
		k.dead = fmt.Errorf("asking the programs that know credentials: %w", err)
		return authn.AuthConfig{}, k.dead
	}
	if a.Error != "" {
		return authn.AuthConfig{}, errors.New(a.Error)
	}
	return a.Auth, nil
}

// close ends the keyring.
func (k *keyring) close() {
	if k == nil {
		return
	}
	k.in.Close()
	k.out.Close()
}

const keyringUse = "keyring"

// keyringCommand is the keyring.
func keyringCommand() *cobra.Command {
	return &cobra.Command{
		Use: keyringUse, Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := confine.NoCoreDumps(); err != nil {
				return err
			}
			out := json.NewEncoder(os.Stdout)
			for in := json.NewDecoder(os.Stdin); ; {
				var q keyringQuestion
				if err := in.Decode(&q); errors.Is(err, io.EOF) {
					return nil
				} else if err != nil {
					return fmt.Errorf("reading what credentials are asked for: %w", err)
				}
				var a keyringAnswer
				at, err := name.NewRegistry(q.Registry)
				if err == nil {
					r := ref.Ref{Transport: ref.Registry, Name: at.Repo(q.Repository).Tag("latest")}
					a.Auth, err = registry.Credentials(cmd.Context(), r)
				}
				if err != nil {
					a = keyringAnswer{Error: err.Error()}
				}
				if err := out.Encode(a); err != nil {
					return fmt.Errorf("telling credentials: %w", err)
				}
			}
		},
	}
}
