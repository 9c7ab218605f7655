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
	"golang.org/x/sync/singleflight"

	"github.com/pexfs/pex/cmd/internal/confine"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/registry"
)

// A daemon that is confined runs no programs. Where the user's files name some that know credentials, it has started a process before that
// runs them: the keyring, asked for a repository's in a line of JSON on its standard input. It is needed when nobody who opens an image hands
// credentials over: when views and machines go on with a daemon that has just been started.
//
// Questions are numbered, and answered as the answers come: a program that is slow holds up nobody but those who asked for what it knows.
type keyring struct {
	in, out  *os.File
	patience time.Duration
	ended    chan struct{} // closed when nothing more comes

	mu      sync.Mutex // held while a question is written, too
	asked   uint64     // the number of the last question
	waiting map[uint64]chan<- keyringAnswer
	dead    error // why nothing more comes
}

// keyringTime is how long a program may take to tell credentials.
const keyringTime = 30 * time.Second

// keyringQuestion is a line of what a keyring is asked. A server's name may have no dot in it, and stand in no reference then.
type keyringQuestion struct {
	Number     uint64 `json:"number"`
	Registry   string `json:"registry"`
	Repository string `json:"repository"`
}

// keyringAnswer is a line of what a keyring says.
type keyringAnswer struct {
	Number uint64           `json:"number"`
	Auth   authn.AuthConfig `json:"auth"`
	Error  string           `json:"error,omitempty"`
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
	return newKeyring(in, out), nil
}

// newKeyring asks a keyring by in, and hears it by out.
func newKeyring(in, out *os.File) *keyring {
	k := &keyring{in: in, out: out, patience: keyringTime, ended: make(chan struct{}), waiting: make(map[uint64]chan<- keyringAnswer)}
	go k.listen()
	return k
}

// listen hands answers to those who wait for them, until the keyring ends. Nobody may wait for one any more.
func (k *keyring) listen() {
	defer close(k.ended)
	for answers := json.NewDecoder(k.out); ; {
		var a keyringAnswer
		err := answers.Decode(&a)
		k.mu.Lock()
		if err != nil {
			k.dead = fmt.Errorf("asking the programs that know credentials: what runs them has ended: %w", err)
			k.mu.Unlock()
			return
		}
		if to := k.waiting[a.Number]; to != nil {
			delete(k.waiting, a.Number)
			to <- a
		}
		k.mu.Unlock()
	}
}

// credentials asks for those of a reference's registry.
func (k *keyring) credentials(ctx context.Context, r ref.Ref) (authn.AuthConfig, error) {
	if k == nil || r.Transport != ref.Registry {
		return registry.Credentials(ctx, r)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, k.patience, fmt.Errorf("none has answered within %v", k.patience))
	defer cancel()
	at := r.Name.Context()
	number, answer, err := k.ask(at)
	if err != nil {
		return authn.AuthConfig{}, err
	}
	select {
	case a := <-answer:
		if a.Error != "" {
			return authn.AuthConfig{}, errors.New(a.Error)
		}
		return a.Auth, nil
	case <-ctx.Done():
		err = fmt.Errorf("asking the programs that know credentials for %s: %w", at.RegistryStr(), context.Cause(ctx))
	case <-k.ended:
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.waiting, number)
	if err == nil {
		err = k.dead
	}
	return authn.AuthConfig{}, err
}

// ask asks for the credentials for a repository. The answer with that number will come there.
func (k *keyring) ask(at name.Repository) (number uint64, answer <-chan keyringAnswer, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dead != nil {
		return 0, nil, k.dead
	}
	k.asked++
	err = k.in.SetWriteDeadline(time.Now().Add(k.patience)) // it reads always, unless something is wrong with it
	if err == nil {
		err = json.NewEncoder(k.in).Encode(keyringQuestion{k.asked, at.RegistryStr(), at.RepositoryStr()})
	}
	if err != nil {
		k.dead = fmt.Errorf("asking the programs that know credentials: %w", err)
		return 0, nil, k.dead
	}
	to := make(chan keyringAnswer, 1)
	k.waiting[k.asked] = to
	return k.asked, to, nil
}

// close ends the keyring.
func (k *keyring) close() {
	if k == nil {
		return
	}
	k.in.Close()
	k.out.Close()
	<-k.ended
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
			return answerQuestions(cmd.Context(), os.Stdin, os.Stdout, registry.Credentials)
		},
	}
}

// answerQuestions answers each question of in when what finds its credentials has, until in ends. Who asks again for a repository that is
// being looked for gets what is found. What is still being looked for in the end is not waited for: its process ends, and with it those
// who would tell.
func answerQuestions(ctx context.Context, in io.Reader, out io.Writer, find func(context.Context, ref.Ref) (authn.AuthConfig, error)) error {
	var finding singleflight.Group
	var mu sync.Mutex // held while an answer is written
	answers := json.NewEncoder(out)
	for questions := json.NewDecoder(in); ; {
		var q keyringQuestion
		if err := questions.Decode(&q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("reading what credentials are asked for: %w", err)
		}
		go func() {
			a := keyringAnswer{Number: q.Number}
			found, err, _ := finding.Do(q.Registry+"/"+q.Repository, func() (any, error) {
				at, err := name.NewRegistry(q.Registry)
				if err != nil {
					return nil, err
				}
				return find(ctx, ref.Ref{Transport: ref.Registry, Name: at.Repo(q.Repository).Tag("latest")})
			})
			if err != nil {
				a.Error = err.Error()
			} else {
				a.Auth = found.(authn.AuthConfig)
			}
			mu.Lock()
			defer mu.Unlock()
			_ = answers.Encode(a) // if nobody hears it, in ends, too
		}()
	}
}
