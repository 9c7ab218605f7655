package main

import (
	"bytes"
	"path"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// FuzzImageConfig runs programs of images with any configuration. What is to be started has a program, a folder that begins at the root,
// and each variable once.
func FuzzImageConfig(f *testing.F) {
	f.Add([]byte(`{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin","A=1","A=2","=","B"],"Entrypoint":["/init"],"Cmd":["a","b"],"WorkingDir":"/srv","User":"www:33"}}`), "", "A\x00B=2\x00HOME", uint8(0))
	f.Add([]byte(`{"config":{"Cmd":[""],"WorkingDir":"srv"}}`), "sh\x00-c\x00x", "", uint8(1))
	f.Add([]byte(`{"config":{"Entrypoint":[],"Cmd":null,"Env":null,"Healthcheck":{},"Volumes":{"/v":{}}}}`), "", "=x", uint8(2))
	f.Add([]byte(`{"rootfs":{"diff_ids":["sha256:x"]},"history":[{"created":"y"}]}`), "a", "", uint8(3))
	f.Fuzz(func(t *testing.T, config []byte, args, env string, flags uint8) {
		c, err := v1.ParseConfigFile(bytes.NewReader(config))
		if err != nil {
			return
		}
		split := func(s string) []string {
			if s == "" {
				return nil
			}
			return strings.Split(s, "\x00")
		}
		fl := processFlags{args: split(args), env: split(env), stdin: flags&1 != 0}
		if flags&2 != 0 {
			entrypoint := args
			fl.entrypoint = &entrypoint
		}
		lookup := func(name string) (string, bool) { return "of this process", name == "HOME" }
		p, err := newProcess(c.Config, fl, lookup)
		if err != nil {
			return
		}
		if len(p.Args) == 0 || p.Args[0] == "" || p.Dir != "" && !path.IsAbs(p.Dir) || p.Stdin != fl.stdin {
			t.Errorf("%+v", p)
		}
		seen := make(map[string]bool)
		for _, e := range p.Env {
			name, _, ok := strings.Cut(e, "=")
			if !ok || name == "" || seen[name] {
				t.Errorf("environment %q", p.Env)
			}
			seen[name] = true
		}
		last := make(map[string]bool) // whether it is set
		for _, e := range fl.env {
			name, _, set := strings.Cut(e, "=")
			last[name] = set || name == "HOME"
		}
		for name, set := range last {
			if seen[name] != set {
				t.Errorf("with %q the environment is %q", fl.env, p.Env)
			}
		}
	})
}
