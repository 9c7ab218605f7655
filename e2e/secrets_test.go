package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// What must not be seen: it is asked for, or given, by guarded.
const (
	secretPassword  = "pass-1f0c9b"
	secretToken     = "token-77ab21"
	secretRefresh   = "refresh-9d3e55"
	secretSignature = "signature-c4402f"
)

// secrets are these, in all forms in which they go over the wire.
func secrets() []string {
	basic := base64.StdEncoding.EncodeToString([]byte("user:" + secretPassword))
	return []string{secretPassword, secretToken, secretRefresh, secretSignature, basic, url.QueryEscape(basic)}
}

// guarded is a registry that wants credentials, before one that doesn't.
type guarded struct {
	bearer, signed bool
	registry       *httputil.ReverseProxy
	elsewhere      string // where blobs are, if signed

	mu     sync.Mutex
	broken bool            // it refuses what it took before
	stale  bool            // the storage does
	used   map[string]bool // secrets that came
}

func (g *guarded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	user, password, basic := r.BasicAuth()
	basic = basic && user == "user" && password == secretPassword
	refuse := func(challenge string) {
		w.Header().Set("WWW-Authenticate", challenge)
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, `{"errors":[{"code":"UNAUTHORIZED","message":"go away"}]}`)
	}
	switch {
	case r.URL.Path == "/token":
		if !basic || g.broken {
			refuse(`Basic realm="tokens"`)
			return
		}
		g.used[secretPassword] = true
		json.NewEncoder(w).Encode(map[string]any{"token": secretToken, "refresh_token": secretRefresh, "expires_in": 300})
		return
	case g.bearer && (r.Header.Get("Authorization") != "Bearer "+secretToken || g.broken):
		refuse(`Bearer realm="http://` + r.Host + `/token",service="registry"`)
		return
	case !g.bearer && (!basic || g.broken):
		refuse(`Basic realm="registry"`)
		return
	}
	if g.bearer {
		g.used[secretToken] = true
	} else {
		g.used[secretPassword] = true
	}
	if g.signed && strings.Contains(r.URL.Path, "/blobs/") {
		http.Redirect(w, r, g.elsewhere+r.URL.Path+"?sig="+secretSignature, http.StatusTemporaryRedirect)
		return
	}
	g.registry.ServeHTTP(w, r)
}

// storage serves blobs to those who bring a signature.
func (g *guarded) storage(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.Header.Get("Authorization") != "" || r.URL.Query().Get("sig") != secretSignature || g.stale {
		http.Error(w, "<Error><Code>AccessDenied</Code></Error>", http.StatusForbidden)
		return
	}
	g.used[secretSignature] = true
	g.registry.ServeHTTP(w, r)
}

// TestSecrets reads images for which credentials are needed, until they are refused, and looks for these wherever the programs say or
// leave anything.
func TestSecrets(t *testing.T) {
	open := newLab(t)
	open.serve()
	target, err := url.Parse("http://" + open.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("ways", func(t *testing.T) { // ends before the registry does
		for name, c := range map[string]struct {
			bearer, signed bool
			uses           []string
		}{
			"basic":             {uses: []string{secretPassword}},
			"bearer":            {bearer: true, uses: []string{secretPassword, secretToken}},
			"signed redirects":  {signed: true, uses: []string{secretPassword, secretSignature}},
			"bearer and signed": {bearer: true, signed: true, uses: []string{secretPassword, secretToken, secretSignature}},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel() // it is patience that takes time
				g := &guarded{bearer: c.bearer, signed: c.signed, registry: httputil.NewSingleHostReverseProxy(target), used: make(map[string]bool)}
				srv := httptest.NewServer(g)
				defer srv.Close()
				other := httptest.NewUnstartedServer(http.HandlerFunc(g.storage))
				l2, err := net.Listen("tcp", "127.0.0.2:0") // another host
				if err != nil {
					t.Fatal(err)
				}
				other.Listener = l2
				other.Start()
				defer other.Close()
				g.elsewhere = other.URL
				host := strings.TrimPrefix(srv.URL, "http://")
				home := t.TempDir()
				config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("user:"+secretPassword)))
				if err := os.WriteFile(filepath.Join(home, "config.json"), []byte(config), 0o600); err != nil {
					t.Fatal(err)
				}
				l := newLab(t)
				l.env = []string{"DOCKER_CONFIG=" + home}
				said := make(map[string]string) // what was said or left where
				run := func(args ...string) {
					out, _ := l.try("pexfs", args...)
					said[strings.Join(args, " ")] = out
				}
				l.do("pexfs", "status") // starts the daemon
				l.do("pexfs", "daemon", "stop")
				f := l.foreground("--log-level", "debug")
				f.logged("daemon serves")
				dir := l.mount("--no-fill", "--no-profile", host+"/demo-estargz")
				if _, err := os.ReadFile(dir + "/usr/bin/bash"); err != nil {
					t.Fatal(err)
				}
				for _, s := range c.uses {
					g.mu.Lock()
					if !g.used[s] {
						t.Errorf("%s was not used", s)
					}
					g.mu.Unlock()
				}
				for _, bad := range []*bool{&g.stale, &g.broken} {
					if bad == &g.stale && !c.signed {
						continue
					}
					g.mu.Lock()
					*bad = true
					g.mu.Unlock()
					if _, err := os.ReadFile(dir + "/usr/bin/perl"); err == nil {
						t.Error("a file was read for which the credentials are no good")
					}
				}
				run("mount", host+"/demo", t.TempDir())
				run("wait", host+"/demo-estargz")
				run("status", "--json")
				run("status", "--why", dir)
				run("status", "--why", "--json", dir)
				run("ls", "--json")
				sock := l.socket()
				for _, path := range []string{"/metrics", "/healthz", "/v1/status", "/debug/pprof/heap", "/debug/pprof/heap?debug=1", "/debug/pprof/goroutine?debug=2", "/debug/pprof/cmdline", "/debug/pprof/block?debug=1"} {
					_, said[path] = fetch(t, sock, "http://pex"+path)
				}
				procs, err := filepath.Glob("/proc/[0-9]*")
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range procs { // the daemon, the view, and whoever they started
					exe, err := os.Readlink(p + "/exe")
					env, _ := os.ReadFile(p + "/environ")
					if err != nil || !strings.HasPrefix(exe, l.build) || !strings.Contains(string(env), l.cache) {
						continue
					}
					args, _ := os.ReadFile(p + "/cmdline")
					said[exe+"'s environment"], said[exe+"'s arguments"] = string(env), string(args)
				}
				if err := filepath.WalkDir(l.cache, func(name string, d fs.DirEntry, err error) error {
					if err != nil || !d.Type().IsRegular() || d.Name() == "image.erofs" {
						return err
					}
					b, err := os.ReadFile(name)
					said[name] = string(b)
					return err
				}); err != nil {
					t.Fatal(err)
				}
				f.mu.Lock()
				for i, line := range f.lines {
					b, err := json.Marshal(line)
					if err != nil {
						t.Error(err)
					}
					said[fmt.Sprintf("line %d of the log", i)] = string(b)
				}
				f.mu.Unlock()
				if len(said) < 20 {
					t.Errorf("only %d things were said", len(said))
				}
				for where, what := range said {
					for _, s := range secrets() {
						if strings.Contains(what, s) {
							t.Errorf("%s has %s: %.2000s", where, s, what)
						}
					}
				}
			})
		}
	})
}
