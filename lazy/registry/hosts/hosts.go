// Package hosts finds which servers stand for a registry and how to speak to them: containerd's hosts.toml
// (https://github.com/containerd/containerd/blob/main/docs/hosts.md), and docker's folders of certificates.
//
// A registry's folder is called HOST_PORT_, HOST:PORT or HOST; _default stands for registries that have none. Nothing is cached, so that
// a change holds for the next image that is opened. A value that isn't understood is an error that names the file and the line: it
// may be the one that keeps requests away from a public server. Settings that aren't known are left out, as the file may be for another
// program and newer, but told of.
package hosts

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Host is a server that has a registry's images, or some of them.
type Host struct {
	// Root is where its API begins: scheme, host and path, without a slash at the end ("https://mirror.example/v2"). Without a scheme
	// it is the registry's own server, and spoken to as if nothing were said of it.
	Root *url.URL
	// Resolve says that it is trusted to tell what a tag is, and Pull that contents are fetched from it.
	Resolve, Pull bool
	// Header is sent to it, and to no other.
	Header http.Header
	// TLS is how to speak to it, and Away how to speak to servers that it names: without the client's certificates, and with theirs
	// verified. nil is Go's own way.
	TLS, Away *tls.Config
	// DialTimeout bounds how long a connection may take to be made; 0 is the transport's.
	DialTimeout time.Duration
	// Proxy stands between; nil: one that the environment names, or none.
	Proxy *url.URL
	// Key tells transports apart: hosts of one key may share one.
	Key string
}

// EnvDirs names a list of folders (as PATH is one) in place of the usual ones.
const EnvDirs = "PEX_HOSTS_DIR"

// Dirs are the folders that registries' folders are looked for in: those of the list given or, if that is empty, of $PEX_HOSTS_DIR, or else the
// user's, the machine's, containerd's and docker's.
func Dirs(list string) []string {
	if list == "" {
		list = os.Getenv(EnvDirs)
	}
	if list != "" {
		return filepath.SplitList(list)
	}
	var dirs []string
	if user, err := os.UserConfigDir(); err == nil {
		dirs = append(dirs, filepath.Join(user, "pex", "certs.d"))
	}
	return append(dirs, "/etc/pex/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d")
}

// Find gives the servers for a registry, host or host:port, in the order in which they are to be tried; none where no folder says anything.
// A folder for this very registry counts before any _default, and an earlier one of dirs before a later one. ignored, if it isn't nil, is told
// in one line which settings of a file aren't known.
func Find(dirs []string, registry string, ignored func(string)) ([]Host, error) {
	for _, names := range [][]string{folders(registry), {"_default"}} {
		for _, dir := range dirs {
			for _, name := range names {
				all, err := load(filepath.Join(dir, name), registry, ignored)
				if errors.Is(err, fs.ErrNotExist) || err == nil && all == nil {
					continue
				}
				return all, err
			}
		}
	}
	return nil, nil
}

// Hub are the names of Docker Hub: what it is called in references, in the library's, and by its server.
func Hub(host string) bool {
	return host == "docker.io" || host == "index.docker.io" || host == "registry-1.docker.io"
}

// folders are the names that a registry's folder may have.
func folders(registry string) []string {
	if Hub(registry) {
		registry = "docker.io"
	}
	if i := strings.LastIndexByte(registry, ':'); i > 0 && !strings.HasSuffix(registry, "]") {
		return []string{registry[:i] + "_" + registry[i+1:] + "_", registry}
	}
	return []string{registry}
}

// load reads a registry's folder.
func load(dir, registry string, ignored func(string)) ([]Host, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	name := filepath.Join(dir, "hosts.toml")
	b, err := readFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return certificates(dir, registry)
	}
	if err != nil {
		return nil, err
	}
	all, unknown, err := parse(name, b, registry)
	if unknown != "" && ignored != nil {
		ignored(unknown)
	}
	return all, err
}

const maxFile = 1 << 20 // bytes of a configuration or a certificate

func readFile(name string) ([]byte, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxFile {
		return nil, fmt.Errorf("reading %s: not a file of at most %d bytes", name, maxFile)
	}
	return os.ReadFile(name)
}

// own is the registry's own server.
func own(registry string) *url.URL {
	if Hub(registry) {
		registry = "registry-1.docker.io"
	}
	return &url.URL{Host: registry, Path: "/v2"}
}
