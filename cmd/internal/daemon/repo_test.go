package daemon

import (
	"bytes"
	"context"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/registry/hosts"
)

// TestMirrorsCredentials looks for what a mirror is to be shown under the mirror's own name, which may be one that a reference can't begin with.
func TestMirrorsCredentials(t *testing.T) {
	known := map[string]authn.AuthConfig{
		"index.docker.io": {Username: "me", Password: "of the hub"}, "mirror": {Username: "robot", Password: "of the mirror"}, "m.example:5000": {Username: "m"},
	}
	for _, tt := range []struct {
		name, host string
		want       map[string]authn.AuthConfig
	}{
		{name: "a name without a dot", host: "mirror", want: map[string]authn.AuthConfig{"mirror": known["mirror"]}},
		{name: "of nobody known", host: "cache", want: map[string]authn.AuthConfig{}},
		{name: "a port", host: "m.example:5000", want: map[string]authn.AuthConfig{"m.example:5000": known["m.example:5000"]}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := ref.Parse("quay.io/team/app:1")
			if err != nil {
				t.Fatal(err)
			}
			servers := []hosts.Host{{Root: &url.URL{Scheme: "http", Host: tt.host, Path: "/v2"}, Pull: true, Resolve: true}}
			got, err := credentials(t.Context(), r, servers, func(_ context.Context, r ref.Ref) (authn.AuthConfig, error) {
				if repo := r.Name.Context().RepositoryStr(); repo != "team/app" {
					t.Errorf("credentials for repository %q are looked for", repo)
				}
				return known[r.Name.Context().RegistryStr()], nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestUnknownSettings opens by a hosts.toml with a setting that isn't known: that is logged once, and again only when the file is another.
func TestUnknownSettings(t *testing.T) {
	s, _ := testServer(t)
	var logged bytes.Buffer
	s.log = slog.New(slog.NewTextHandler(&logged, nil))
	dir := t.TempDir()
	name := filepath.Join(dir, "r.example", "hosts.toml")
	if err := os.Mkdir(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	for i, text := range []string{"colour = 1", "colour = 2", "\ncolour = 2", "server = \"https://m.example\""} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := s.openRepo(t.Context(), parseRef(t, "r.example/app:1"), RepoOptions{HostsDirs: dir, Auth: &authn.AuthConfig{}, HostAuth: map[string]authn.AuthConfig{}}); err != nil {
				t.Fatal(err)
			}
		}
		if n, want := strings.Count(logged.String(), "level=WARN"), []int{1, 1, 2, 2}[i]; n != want || !strings.Contains(logged.String(), name) {
			t.Errorf("%q: %d warnings, want %d: %s", text, n, want, &logged)
		}
	}
}
