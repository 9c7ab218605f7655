//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// loadModules loads the modules that the file modules in dir lists, in its order. One that is loaded or built in
// already is no error.
func loadModules(dir string) error {
	list, err := os.ReadFile(filepath.Join(dir, "modules"))
	if err != nil {
		return fmt.Errorf("reading list of modules: %w", err)
	}
	for name := range strings.FieldsSeq(string(list)) {
		if err := loadModule(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("loading module %s: %w", name, err)
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
