package main

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets scripts call this program's pex.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"pex": main})
}

// TestScripts runs what needs no machine.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:  "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": status},
		Setup: func(e *testscript.Env) error {
			e.Setenv("PEX_CACHE_DIR", e.WorkDir+"/cache")
			e.Setenv("XDG_RUNTIME_DIR", e.WorkDir)
			e.Setenv("PEX_BIN", filepath.SplitList(e.Getenv("PATH"))[0])
			return nil
		},
	})
}

// status runs a command that must end with a status: status N command [arg…].
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N command [arg...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	got := 0
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("status %d, want %s", got, args[0])
	}
}
