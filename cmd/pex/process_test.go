package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/vm/guest"
)

func TestNewProcess(t *testing.T) {
	image := v1.Config{
		Entrypoint: []string{"/entry", "-x"}, Cmd: []string{"cmd"},
		Env: []string{"PATH=/bin", "A=1"}, WorkingDir: "/work", User: "app",
	}
	text := func(s string) *string { return &s }
	process := func(change func(*guest.Process)) guest.Process {
		p := guest.Process{Args: []string{"/entry", "-x", "cmd"}, Env: []string{"PATH=/bin", "A=1"}, Dir: "/work", User: "app"}
		change(&p)
		return p
	}
	tests := []struct {
		name  string
		image v1.Config
		flags processFlags
		want  guest.Process
		err   string
	}{
		{"the image's", image, processFlags{}, process(func(*guest.Process) {}), ""},
		{"arguments", image, processFlags{args: []string{"a", "-b"}}, process(func(p *guest.Process) {
			p.Args = []string{"/entry", "-x", "a", "-b"}
		}), ""},
		{"entrypoint", image, processFlags{entrypoint: text("/sh")}, process(func(p *guest.Process) { p.Args = []string{"/sh"} }), ""},
		{"entrypoint and arguments", image, processFlags{entrypoint: text("/sh"), args: []string{"-c"}}, process(func(p *guest.Process) {
			p.Args = []string{"/sh", "-c"}
		}), ""},
		{"entrypoint taken away", image, processFlags{entrypoint: text(""), args: []string{"ls"}}, process(func(p *guest.Process) {
			p.Args = []string{"ls"}
		}), ""},
		{"everything else", image, processFlags{dir: "/", user: "0:0", stdin: true, env: []string{"B=2"}}, process(func(p *guest.Process) {
			p.Dir, p.User, p.Stdin = "/", "0:0", true
			p.Env = append(p.Env, "B=2")
		}), ""},
		{"nothing to run", v1.Config{}, processFlags{}, guest.Process{}, "no program to run"},
		{"entrypoint taken away and nothing else", image, processFlags{entrypoint: text("")}, guest.Process{}, "no program to run"},
		{"empty name", v1.Config{}, processFlags{args: []string{""}}, guest.Process{}, "no program to run"},
		{"relative folder", image, processFlags{dir: "tmp"}, guest.Process{}, "absolute"},
		{"variable without name", image, processFlags{env: []string{"=x"}}, guest.Process{}, "no name"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := newProcess(tt.image, tt.flags, func(string) (string, bool) { return "", false })
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestMergeEnv(t *testing.T) {
	host := func(name string) (string, bool) {
		if name == "HOSTVAR" {
			return "from host", true
		}
		return "", false
	}
	tests := []struct {
		name         string
		env, changes []string
		want         []string
	}{
		{"none", nil, nil, nil},
		{"added", []string{"A=1"}, []string{"B=2=3"}, []string{"A=1", "B=2=3"}},
		{"replaced in its place", []string{"A=1", "B=2"}, []string{"A=3"}, []string{"A=3", "B=2"}},
		{"last counts", []string{"A=1"}, []string{"A=2", "A=3"}, []string{"A=3"}},
		{"image's own doubles", []string{"A=1", "A=2"}, nil, []string{"A=2"}},
		{"emptied", []string{"A=1"}, []string{"A="}, []string{"A="}},
		{"passed on", nil, []string{"HOSTVAR"}, []string{"HOSTVAR=from host"}},
		{"taken away", []string{"A=1", "B=2"}, []string{"A"}, []string{"B=2"}},
		{"image's is not the host's", []string{"HOSTVAR"}, nil, nil},
		{"image's oddities", []string{"=x", "", "A=1"}, nil, []string{"A=1"}},
		{"prefix of a name", []string{"AB=1"}, []string{"A=2"}, []string{"AB=1", "A=2"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := mergeEnv(tt.env, tt.changes, host)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestMachineMemory(t *testing.T) {
	const mib, most = 1 << 20, 1 << 40
	for size, want := range map[cli.Size]int64{
		64 * mib: 64 * mib, 64*mib + 1: 65 * mib, 257*mib - 1: 257 * mib, most: most,
		64*mib - 1: 0, 1: 0, most + 1: 0, 1<<63 - 1: 0,
	} {
		got, err := machineMemory(size)
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("%s: %d, %v, want %d", &size, got, err, want)
		}
	}
}
