package hosts

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// write makes files below a folder, from their names and contents.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// pair makes a certificate and its key, as PEM.
func pair(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kder}))
}

// text is a host in short.
func text(h Host) string {
	s := h.Root.String()
	if h.Pull {
		s += " pull"
	}
	if h.Resolve {
		s += " resolve"
	}
	var headers []string
	for k, v := range h.Header {
		headers = append(headers, fmt.Sprint(" ", k, "=", strings.Join(v, ",")))
	}
	slices.Sort(headers)
	s += strings.Join(headers, "")
	if h.TLS != nil {
		s += fmt.Sprintf(" tls(roots %v, clients %d, skip %v)", h.TLS.RootCAs != nil, len(h.TLS.Certificates), h.TLS.InsecureSkipVerify)
	}
	if h.Away != nil {
		s += fmt.Sprintf(" away(roots %v, clients %d, skip %v)", h.Away.RootCAs != nil, len(h.Away.Certificates), h.Away.InsecureSkipVerify)
	}
	if h.DialTimeout != 0 {
		s += " dial " + h.DialTimeout.String()
	}
	if h.Proxy != nil {
		s += " proxy " + h.Proxy.String()
	}
	return s
}

func TestFind(t *testing.T) {
	cert, key := pair(t)
	const mirror = `server = "https://up.example"` + "\n" + `[host."https://m.example"]` + "\n"
	for _, tt := range []struct {
		name     string
		files    map[string]string // in a/ and b/, which are looked in in this order
		registry string
		want     []string
		err      string // what an error says; DIR stands for the folder
	}{
		{name: "nothing", registry: "r.example"},
		{name: "an empty folder", files: map[string]string{"a/r.example/readme": "x"}, registry: "r.example"},
		{name: "a mirror", files: map[string]string{"a/r.example/hosts.toml": mirror}, registry: "r.example",
			want: []string{"https://m.example/v2 pull resolve", "https://up.example/v2 pull resolve"}},
		{name: "no server", files: map[string]string{"a/r.example/hosts.toml": `[host."http://m.example:5000"]`}, registry: "r.example:443",
			want: nil},
		{name: "no server, with port", files: map[string]string{"a/r.example_5000_/hosts.toml": `[host."http://m.example:5000"]`}, registry: "r.example:5000",
			want: []string{"http://m.example:5000/v2 pull resolve", "//r.example:5000/v2 pull resolve"}},
		{name: "with a colon", files: map[string]string{"b/r.example:5000/hosts.toml": mirror}, registry: "r.example:5000",
			want: []string{"https://m.example/v2 pull resolve", "https://up.example/v2 pull resolve"}},
		{name: "docker hub", files: map[string]string{"a/docker.io/hosts.toml": `[host."https://m.example"]`}, registry: "index.docker.io",
			want: []string{"https://m.example/v2 pull resolve", "//registry-1.docker.io/v2 pull resolve"}},
		{name: "by default", files: map[string]string{"a/_default/hosts.toml": `server = "https://only.example"`}, registry: "r.example",
			want: []string{"https://only.example/v2 pull resolve"}},
		{name: "its own before the default", files: map[string]string{"a/_default/hosts.toml": `server = "https://only.example"`, "b/r.example/hosts.toml": mirror}, registry: "r.example",
			want: []string{"https://m.example/v2 pull resolve", "https://up.example/v2 pull resolve"}},
		{name: "in order", registry: "r.example", files: map[string]string{"a/r.example/hosts.toml": `
			[host."https://z.example"]
			[host."https://y.example"]
			  capabilities = ["pull"]
			  [host."https://y.example".header]
			    x-two = ["b", "c"]
			    x-one = "a"
			[host."https://a.example/proxy"]
			  capabilities = ["Pull", "push"]
			[host."https://b.example/api/x"]
			  override_path = true
			  dial_timeout = "2s"
			  proxy = "http://proxy.example:8080"
			[host."x.example:99/v2"]
			  capabilities = []
		`}, want: []string{
			"https://z.example/v2 pull resolve", "https://y.example/v2 pull X-One=a X-Two=b,c", "https://a.example/proxy/v2 pull",
			"https://b.example/api/x pull resolve dial 2s proxy http://proxy.example:8080", "https://x.example:99/v2", "//r.example/v2 pull resolve"}},
		{name: "certificates", registry: "r.example", files: map[string]string{
			"a/r.example/ca.pem": cert, "a/r.example/both.pem": cert + key, "a/r.example/c": cert, "a/r.example/k": key,
			"a/r.example/hosts.toml": `
			ca = "ca.pem"
			[host."https://m.example"]
			  ca = ["ca.pem", "both.pem"]
			  client = [["c", "k"], ["both.pem", ""], "both.pem"]
			  skip_verify = true
			[host."https://n.example"]
			  client = "both.pem"
		`}, want: []string{
			"https://m.example/v2 pull resolve tls(roots true, clients 3, skip true) away(roots true, clients 0, skip false)",
			"https://n.example/v2 pull resolve tls(roots false, clients 1, skip false)",
			"https://r.example/v2 pull resolve tls(roots true, clients 0, skip false) away(roots true, clients 0, skip false)"}},
		{name: "docker's", registry: "r.example:5000", files: map[string]string{"b/r.example:5000/ca.crt": cert, "b/r.example:5000/client.cert": cert, "b/r.example:5000/client.key": key},
			want: []string{"https://r.example:5000/v2 pull resolve tls(roots true, clients 1, skip false) away(roots true, clients 0, skip false)"}},

		{name: "docker's, no key", registry: "r.example", files: map[string]string{"b/r.example/client.cert": cert}, err: "client.key"},
		{name: "docker's, no certificate", registry: "r.example", files: map[string]string{"b/r.example/client.key": key}, err: "client.cert is missing"},
		{name: "docker's, no PEM", registry: "r.example", files: map[string]string{"b/r.example/ca.crt": "x"}, err: "DIR/b/r.example/ca.crt has no certificate"},
		{name: "no TOML", registry: "r.example", files: map[string]string{"a/r.example/hosts.toml": "server = \"x\"\n\nthis is not\n"}, err: "DIR/a/r.example/hosts.toml, line 3: "},
		{name: "a wrong type", registry: "r.example", files: map[string]string{"a/r.example/hosts.toml": "\nserver = 3\n"}, err: "hosts.toml, line 2: "},
		{name: "an unknown capability", registry: "r.example", files: map[string]string{"a/r.example/hosts.toml": "server = \"https://x\"\n[host.\"https://a\"]\ncapabilities = [\"pull\"]\n[host.\"https://b\"]\ncapabilities = [\"fetch\"]"}, err: `line 5: "fetch" is none of`},
		{name: "no such scheme", registry: "r.example", files: map[string]string{"a/r.example/hosts.toml": "# x\nserver = \"ftp://x\""}, err: `line 2: "ftp" is neither`},
		{name: "a user", registry: "r.example", files: map[string]string{"a/r.example/hosts.toml": "[host.\"https://me:secret@x\"]"}, err: `line 1: want an address`},
		{name: "a header that isn't", registry: "r.example", files: map[string]string{"a/r.example/hosts.toml": "[header]\n\"a b\" = \"x\""}, err: `line 2: "a b" is not a header`},
		{name: "a header of two lines", registry: "r.example", files: map[string]string{"a/r.example/hosts.toml": "[header]\na = \"x\\r\\ny: z\""}, err: `line 2: the value of "a" can't be sent`},
		{name: "no such certificate", registry: "r.example", files: map[string]string{"a/r.example/hosts.toml": "\n\nca = \"none.pem\""}, err: `line 3: `},
		{name: "a time", registry: "r.example", files: map[string]string{"a/r.example/hosts.toml": "dial_timeout = \"soon\""}, err: `line 1: "soon" is not a length of time`},
		{name: "a proxy", registry: "r.example", files: map[string]string{"a/r.example/hosts.toml": "proxy = \"gopher://x\""}, err: `line 1: it is not the address of a proxy`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, tt.files)
			all, err := Find([]string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}, tt.registry, nil)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), strings.ReplaceAll(tt.err, "DIR", dir)) || strings.Contains(err.Error(), "secret") {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, h := range all {
				got = append(got, text(h))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestUnknown holds that settings that aren't known are told of once for a file, and that the others count.
func TestUnknown(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{name: "none", text: "[host.\"https://a\"]\n"},
		{name: "of the server", text: "\ncolour = 3\n[host.\"https://a\"]\n", want: `line 2: "colour"`},
		{name: "of hosts", text: "[host.\"https://a\"]\n\nskip-verify = true\n[host.\"https://b\"]\nskip-verify = true",
			want: `line 3: "host.\"https://a\".skip-verify", line 5: "host.\"https://b\".skip-verify"`},
		{name: "many", text: "a=1\nb=1\nc=1\nd=1\ne=1\nf=1\ng=1\nh=1\ni=1\nj=1\n[host.\"https://a\"]\n",
			want: `line 1: "a", line 2: "b", line 3: "c", line 4: "d", line 5: "e", line 6: "f", line 7: "g", line 8: "h", and 2 more`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string]string{"r.example/hosts.toml": tt.text})
			var told, want []string
			all, err := Find([]string{dir}, "r.example", func(s string) { told = append(told, s) })
			if err != nil || len(all) < 2 || all[0].Root.Host != "a" {
				t.Errorf("hosts %v, error %v", all, err)
			}
			if tt.want != "" {
				want = []string{filepath.Join(dir, "r.example", "hosts.toml") + " has settings that aren't known and are left out: " + tt.want}
			}
			if diff := cmp.Diff(want, told); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestKeys holds that hosts of one key are spoken to alike.
func TestKeys(t *testing.T) {
	one, key := pair(t)
	other, _ := pair(t)
	dir := t.TempDir()
	write(t, dir, map[string]string{"r.example/a.pem": one, "r.example/b.pem": other, "r.example/k.pem": one + key, "r.example/hosts.toml": `
		[host."https://a"]
		[host."https://b"]
		[host."https://c"]
		ca = "a.pem"
		[host."https://d"]
		ca = "b.pem"
		[host."https://e"]
		client = "k.pem"
		[host."https://f"]
		skip_verify = true
		[host."https://g"]
		proxy = "http://p"
	`})
	all, err := Find([]string{dir}, "r.example", nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, h := range all {
		seen[h.Key]++
	}
	if len(seen) != 6 || seen[all[0].Key] != 3 {
		t.Errorf("the keys are %v", seen)
	}
}

// FuzzParse holds that what is taken can be used, and that an error tells of a line that there is.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`server = "https://a"`, "[host.\"https://b\"]\ncapabilities = [\"pull\"]\n", "[host.\"https://b\".header]\nx = [\"y\"]\n", "skip_verify = true\nca = 3\n",
		"host = 3", "[host.a.b.c]\n", "client = [[\"a\", \"b\", \"c\"]]", "override_path = true\nserver=\"http://x/%2e\"",
	} {
		f.Add([]byte(s))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		all, unknown, err := parse(filepath.Join(dir, "hosts.toml"), b, "r.example")
		if err != nil {
			var line int
			if _, rest, ok := strings.Cut(err.Error(), "hosts.toml, line "); ok {
				fmt.Sscanf(rest, "%d:", &line)
				if line < 1 || line > strings.Count(string(b), "\n")+1 {
					t.Errorf("%q has no line %d: %v", b, line, err)
				}
			}
			return
		}
		if len(all) == 0 {
			t.Error("no host")
		}
		if strings.ContainsAny(unknown, "\r\n") {
			t.Errorf("what isn't known takes more than a line: %q", unknown)
		}
		for _, h := range all {
			if h.Root == nil || h.Root.Host == "" || strings.HasSuffix(h.Root.Path, "/") || h.Key == "" || h.Root.User != nil {
				t.Errorf("%q makes %+v of root %v", b, h, h.Root)
			}
		}
	})
}
