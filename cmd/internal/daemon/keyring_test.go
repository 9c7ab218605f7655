package daemon

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/pexfs/pex/lazy/ref"
)

// testKeyring is a keyring that finds credentials by find. end ends what answers it.
func testKeyring(t *testing.T, find func(context.Context, ref.Ref) (authn.AuthConfig, error)) (k *keyring, end func()) {
	t.Helper()
	asks, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, tells, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	k = newKeyring(in, out)
	done := make(chan error, 1)
	go func() { done <- answerQuestions(t.Context(), asks, tells, find) }()
	t.Cleanup(func() {
		k.close()
		if err := <-done; err != nil {
			t.Error(err)
		}
		asks.Close()
		tells.Close()
	})
	return k, func() { tells.Close() }
}

func parseRef(t *testing.T, s string) ref.Ref {
	t.Helper()
	r, err := ref.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestSlowKeyring has a program that knows credentials hang: who asked for these waits as long as he likes to, and the others get theirs,
// as does he who asks again.
func TestSlowKeyring(t *testing.T) {
	release, looking := make(chan struct{}), make(chan struct{}, 1)
	k, _ := testKeyring(t, func(_ context.Context, r ref.Ref) (authn.AuthConfig, error) {
		switch host := r.Name.Context().RegistryStr(); host {
		case "slow.example":
			looking <- struct{}{}
			<-release
			return authn.AuthConfig{Username: "slow"}, nil
		case "wrong.example":
			return authn.AuthConfig{}, errors.New("no such key")
		default:
			return authn.AuthConfig{Username: host}, nil
		}
	})
	slow := parseRef(t, "slow.example/app:1")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-looking
		cancel()
	}()
	if a, err := k.credentials(ctx, slow); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, error %v", a, err)
	}
	k.patience = time.Millisecond
	if a, err := k.credentials(t.Context(), slow); err == nil || !strings.Contains(err.Error(), "slow.example: none has answered within 1ms") {
		t.Errorf("%v, error %v", a, err)
	}
	k.patience = keyringTime
	for _, host := range []string{"one.example", "mirror"} {
		at, err := name.NewRegistry(host)
		if err != nil {
			t.Fatal(err)
		}
		r := ref.Ref{Transport: ref.Registry, Name: at.Repo("app").Tag("1")}
		if a, err := k.credentials(t.Context(), r); err != nil || a.Username != host {
			t.Errorf("%s: %v, error %v", host, a, err)
		}
	}
	if _, err := k.credentials(t.Context(), parseRef(t, "wrong.example/app:1")); err == nil || err.Error() != "no such key" {
		t.Errorf("error %v", err)
	}
	close(release)
	if a, err := k.credentials(t.Context(), slow); err != nil || a.Username != "slow" {
		t.Errorf("%v, error %v", a, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.waiting) > 0 {
		t.Errorf("%d are waited for", len(k.waiting))
	}
}

// TestKeyringEnds ends what runs the programs: who waits is told, and who asks after that.
func TestKeyringEnds(t *testing.T) {
	looking, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	k, end := testKeyring(t, func(context.Context, ref.Ref) (authn.AuthConfig, error) {
		close(looking)
		<-release
		return authn.AuthConfig{}, nil
	})
	go func() {
		<-looking
		end()
	}()
	for range 2 {
		if a, err := k.credentials(t.Context(), parseRef(t, "r.example/app:1")); err == nil || !strings.Contains(err.Error(), "has ended") {
			t.Errorf("%v, error %v", a, err)
		}
	}
}
