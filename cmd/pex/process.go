package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/cmd/internal/cli"
	"github.com/pexfs/pex/vm"
	"github.com/pexfs/pex/vm/guest"
)

// processFlags are the choices of a command line that change an image's own.
type processFlags struct {
	args       []string
	entrypoint *string // nil: the image's
	env        []string
	dir        string
	user       string
	stdin      bool
}

// newProcess says what to run, by docker's rules: arguments replace the image's
// command and follow its entrypoint; another entrypoint drops the image's command.
func newProcess(image v1.Config, f processFlags, lookup func(string) (string, bool)) (guest.Process, error) {
	entrypoint, args := image.Entrypoint, f.args
	if f.entrypoint != nil {
		entrypoint = nil
		if *f.entrypoint != "" {
			entrypoint = []string{*f.entrypoint}
		}
	} else if len(args) == 0 {
		args = image.Cmd
	}
	p := guest.Process{
		Args:  slices.Concat(entrypoint, args),
		Dir:   image.WorkingDir,
		User:  image.User,
		Stdin: f.stdin,
	}
	if len(p.Args) == 0 || p.Args[0] == "" {
		return guest.Process{}, hinted{errors.New("no program to run: the image names none"), "name one after the image"}
	}
	if f.dir != "" {
		p.Dir = f.dir
	}
	if f.user != "" {
		p.User = f.user
	}
	if p.Dir != "" && p.Dir[0] != '/' {
		return guest.Process{}, fmt.Errorf("working directory %q: want an absolute path", p.Dir)
	}
	var err error
	p.Env, err = mergeEnv(image.Env, f.env, lookup)
	return p, err
}

// mergeEnv changes an environment. NAME=VALUE sets, NAME takes this process's value,
// or takes the variable away if it has none. Of several settings the last one counts.
func mergeEnv(env, changes []string, lookup func(string) (string, bool)) ([]string, error) {
	var merged []string // "" where a variable was taken away
	at := make(map[string]int)
	for i, e := range slices.Concat(env, changes) {
		name, _, set := strings.Cut(e, "=")
		if name == "" {
			if i < len(env) {
				continue // an image's oddity is no reason not to run it
			}
			return nil, fmt.Errorf("environment variable %q: no name", e)
		}
		if !set && i >= len(env) {
			if value, ok := lookup(name); ok {
				e, set = name+"="+value, true
			}
		}
		k, known := at[name]
		switch {
		case set && known:
			merged[k] = e
		case set:
			at[name] = len(merged)
			merged = append(merged, e)
		case known:
			merged[k] = ""
			delete(at, name)
		}
	}
	return slices.DeleteFunc(merged, func(e string) bool { return e == "" }), nil
}

// machineMemory is the memory of a machine that is to have size bytes: whole MiB.
func machineMemory(size cli.Size) (int64, error) {
	if size < vm.MinMemory || size > vm.MaxMemory {
		return 0, fmt.Errorf("memory of %s: want %dm to %dg", &size, vm.MinMemory>>20, int64(vm.MaxMemory)>>30)
	}
	return (int64(size) + 1<<20 - 1) >> 20 << 20, nil
}
