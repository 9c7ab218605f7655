package daemon

import (
	"context"
	"net/url"
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
