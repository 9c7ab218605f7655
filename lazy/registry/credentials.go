package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/pexfs/pex/lazy/ref"
)

// Credentials finds the user's credentials for the registry of r, in this order:
//
//   - the file $REGISTRY_AUTH_FILE, if that is set;
//   - docker's config.json, in $DOCKER_CONFIG or ~/.docker, with its credential helpers;
//   - podman's: $XDG_RUNTIME_DIR/containers/auth.json, then containers/auth.json in $XDG_CONFIG_HOME or ~/.config.
//
// The first that knows the registry counts. The result is a plain value that can be handed to another process; it is
// empty where there are no credentials. For a reference to no registry it is empty too.
func Credentials(ctx context.Context, r ref.Ref) (authn.AuthConfig, error) {
	if r.Transport != ref.Registry {
		return authn.AuthConfig{}, nil
	}
	var chain []authn.Keychain
	if f := os.Getenv("REGISTRY_AUTH_FILE"); f != "" {
		chain = append(chain, authFile(f))
	}
	if dockerConfigured() {
		chain = append(chain, authn.DefaultKeychain)
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		chain = append(chain, authFile(filepath.Join(dir, "containers", "auth.json")))
	}
	if dir, err := os.UserConfigDir(); err == nil {
		chain = append(chain, authFile(filepath.Join(dir, "containers", "auth.json")))
	}
	for _, k := range chain {
		a, err := authn.Resolve(ctx, k, r.Name.Context())
		if err != nil {
			return authn.AuthConfig{}, fmt.Errorf("finding credentials for %s: %w", r.Name.Context().RegistryStr(), err)
		}
		c, err := authn.Authorization(ctx, a)
		if err != nil {
			return authn.AuthConfig{}, fmt.Errorf("finding credentials for %s: %w", r.Name.Context().RegistryStr(), err)
		}
		if *c != (authn.AuthConfig{}) {
			return *c, nil
		}
	}
	return authn.AuthConfig{}, nil
}

// dockerConfigured says whether there is a config.json of docker's. Without one, the default keychain reads podman's
// files, but takes an entry for one path of a registry for any other path there.
func dockerConfigured() bool {
	dirs := []string{os.Getenv("DOCKER_CONFIG")}
	if home, err := os.UserHomeDir(); err == nil {
		dirs = append(dirs, filepath.Join(home, ".docker"))
	}
	for _, dir := range dirs {
		if fi, err := os.Stat(filepath.Join(dir, "config.json")); dir != "" && err == nil && !fi.IsDir() {
			return true
		}
	}
	return false
}

// authFile is the name of a file as podman writes it (containers-auth.json(5)): docker's format, but its keys may be
// parts of a repository's path, and Docker Hub is called docker.io.
type authFile string

// Resolve implements authn.Keychain. A file that isn't there knows nobody.
func (file authFile) Resolve(res authn.Resource) (authn.Authenticator, error) {
	f, err := os.Open(string(file))
	if errors.Is(err, fs.ErrNotExist) {
		return authn.Anonymous, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	c, err := config.LoadFromReader(f)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", string(file), err)
	}
	for _, key := range authKeys(res.String(), res.RegistryStr()) {
		// The file's own entries count as they are written; the library would also take one for another path.
		a, ok := c.AuthConfigs[key]
		if _, helper := c.CredentialHelpers[key]; !ok && (helper || c.CredentialsStore != "") {
			if a, err = c.GetAuthConfig(key); err != nil {
				return nil, fmt.Errorf("reading %s: %w", string(file), err)
			}
		}
		a.ServerAddress = ""
		if a != (types.AuthConfig{}) {
			return authn.FromConfig(authn.AuthConfig{
				Username: a.Username, Password: a.Password, Auth: a.Auth,
				IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
			}), nil
		}
	}
	return authn.Anonymous, nil
}

// authKeys lists the keys under which credentials for a repository may be, the most specific first.
func authKeys(repo, registry string) []string {
	hub := registry == name.DefaultRegistry
	if hub {
		repo, registry = "docker.io"+strings.TrimPrefix(repo, registry), "docker.io"
	}
	var keys []string
	for key := repo; len(key) > len(registry); {
		keys = append(keys, key)
		key = key[:strings.LastIndexByte(key, '/')]
	}
	keys = append(keys, registry)
	if hub {
		keys = append(keys, authn.DefaultAuthKey)
	}
	return keys
}

// Helpers tells whether some of the files that Credentials reads name programs that it would run for them.
func Helpers() bool {
	files := []string{os.Getenv("REGISTRY_AUTH_FILE"), filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json")}
	if home, err := os.UserHomeDir(); err == nil {
		files = append(files, filepath.Join(home, ".docker", "config.json"))
	}
	if dir, err := os.UserConfigDir(); err == nil {
		files = append(files, filepath.Join(dir, "containers", "auth.json"))
	}
	files = append(files, filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "containers", "auth.json"))
	for _, name := range files {
		if !filepath.IsAbs(name) {
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			continue // Credentials tells
		}
		c, err := config.LoadFromReader(f)
		f.Close()
		if err == nil && (c.CredentialsStore != "" || len(c.CredentialHelpers) > 0) {
			return true
		}
	}
	return false
}
