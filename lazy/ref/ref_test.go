package ref

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

const hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		in, want string
		digest   bool
	}{
		{in: "python", want: "index.docker.io/library/python:latest"},
		{in: "python:3.12", want: "index.docker.io/library/python:3.12"},
		{in: "docker://python:3.12", want: "index.docker.io/library/python:3.12"},
		{in: "docker.io/python", want: "index.docker.io/library/python:latest"},
		{in: "docker.io/library/python", want: "index.docker.io/library/python:latest"},
		{in: "index.docker.io/library/python:3", want: "index.docker.io/library/python:3"},
		{in: "some/app", want: "index.docker.io/some/app:latest"},
		{in: "localhost/app", want: "localhost/app:latest"},
		{in: "localhost:5000/app:v1", want: "localhost:5000/app:v1"},
		{in: "127.0.0.1:5000/a/b/c:v1", want: "127.0.0.1:5000/a/b/c:v1"},
		{in: "[::1]:5000/app", want: "[::1]:5000/app:latest"},
		{in: "example.com/a__b/c-d--e.f:T_1.x-", want: "example.com/a__b/c-d--e.f:T_1.x-"},
		{in: "python@sha256:" + hex64, want: "index.docker.io/library/python@sha256:" + hex64, digest: true},
		{in: "python:3.12@sha256:" + hex64, want: "index.docker.io/library/python@sha256:" + hex64, digest: true},
		{in: "host:5000/x:y@sha512:" + hex64 + hex64, want: "host:5000/x@sha512:" + hex64 + hex64, digest: true},
		{in: "oci:img", want: "oci:img"},
		{in: "oci:/a/./b/", want: "oci:/a/b"},
		{in: "oci:../img:v1", want: "oci:../img:v1"},
		{in: "oci:img:docker.io/library/x:3", want: "oci:img:docker.io/library/x:3"},
		{in: "oci:img@sha256:" + hex64, want: "oci:img@sha256:" + hex64, digest: true},
		{in: "oci:img:v1@sha256:" + hex64, want: "oci:img@sha256:" + hex64, digest: true},
		{in: "oci:a@b", want: "oci:a@b"},
	} {
		t.Run(tt.in, func(t *testing.T) {
			r, err := Parse(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if got := r.String(); got != tt.want {
				t.Errorf("String() = %q, want %q", got, tt.want)
			}
			if r.IsDigest() != tt.digest {
				t.Errorf("IsDigest() = %v", r.IsDigest())
			}
			again, err := Parse(r.String())
			if err != nil || again != r {
				t.Errorf("Parse(String()) = %#v, %v, want %#v", again, err, r)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", "empty"},
		{strings.Repeat("a", 10000), "bytes long"},
		{"https://example.com/x", "no place in a reference"},
		{"docker://https://example.com/x", "no place in a reference"},
		{"Python", `must be lower case: "python"`},
		{"python:", "is no tag"},
		{"python:.x", "is no tag"},
		{"python:a/b", "is no host"},
		{"example.com/../x", "is no name"},
		{"example.com/a//b", "is no name"},
		{"example.com/a/", "is no name"},
		{"example.com/", "is no name"},
		{"a..b/x", "is no host"},
		{"host:port/x", "is no host"},
		{"user:pw@host/x", "hash"},
		{"[::1/x", "is no host"},
		{"python@sha256:abc", "hex digits"},
		{"python@md5:" + hex64, "unsupported hash"},
		{"python@sha256:" + strings.ToUpper(hex64), "non-hex"},
		{"oci:", "no folder"},
		{"oci::x", "no folder"},
		{"oci:a:", "no name within a layout"},
		{"oci:a:-x", "no name within a layout"},
		{"oci:a\x00b", "NUL"},
		{"x\ny", "is no name"},
	} {
		t.Run(tt.in, func(t *testing.T) {
			r, err := Parse(tt.in)
			if err == nil {
				t.Fatalf("Parse gave %v", r)
			}
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q, want ErrInvalid and %q", err, tt.want)
			}
		})
	}
}

func TestAbs(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	r, err := Parse("oci:img:v1")
	if err != nil {
		t.Fatal(err)
	}
	abs, err := r.Abs()
	if err != nil {
		t.Fatal(err)
	}
	if want := "oci:" + filepath.Join(dir, "img") + ":v1"; abs.String() != want {
		t.Errorf("Abs() = %v, want %v", abs, want)
	}
	colon := filepath.Join(dir, "a:b")
	if err := os.Mkdir(colon, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(colon)
	if abs, err := r.Abs(); !errors.Is(err, ErrInvalid) {
		t.Errorf("Abs() in a folder with a colon = %v, %v", abs, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"python:3.12", "localhost:5000/a/b@sha256:" + hex64, "oci:dir:tag", "oci:dir@sha256:" + hex64,
		"docker://docker.io/x", "oci:a:b@c", "docker.io/docker.io/x", "library", "oci:docker://x",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(r.String())
		if err != nil {
			t.Fatalf("Parse(%q).String() = %q: %v", s, r, err)
		}
		if again != r {
			t.Fatalf("Parse(%q) = %#v, again %#v", s, r, again)
		}
	})
}

func TestKind(t *testing.T) {
	const manifest, index, docker = types.OCIManifestSchema1, types.OCIImageIndex, types.DockerManifestSchema2
	for _, tt := range []struct {
		name, body string
		said, want types.MediaType // want empty: ErrUnsupported
	}{
		{"as said", `{"config":{}}`, docker, docker},
		{"both say", `{"mediaType":"` + string(manifest) + `"}`, manifest, manifest},
		{"contradiction", `{"mediaType":"` + string(manifest) + `"}`, index, ""},
		{"body says", `{"mediaType":"` + string(docker) + `"}`, "application/json", docker},
		{"shape of an index", `{"manifests":[]}`, "", index},
		{"shape of a manifest", `{"config":{}}`, "", manifest},
		{"both shapes", `{"manifests":[],"config":{}}`, manifest, ""},
		{"no shape", `{}`, "", ""},
		{"schema 1", `{"schemaVersion":1,"config":{}}`, "", ""},
		{"something else", `{"mediaType":"application/x"}`, "", ""},
		{"not JSON", `<html>`, manifest, ""},
		{"not an object", `[]`, manifest, ""},
	} {
		got, err := Kind([]byte(tt.body), tt.said)
		if got != tt.want || errors.Is(err, ErrUnsupported) != (tt.want == "") {
			t.Errorf("%s: got %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
}
