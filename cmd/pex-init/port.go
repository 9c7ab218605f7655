//go:build linux

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// deviceTimeout is how long devices may take to appear after their drivers are loaded.
const deviceTimeout = 30 * time.Second

// waitFor calls ok until it says yes.
func waitFor(what string, ok func() (bool, error)) error {
	deadline := time.Now().Add(deviceTimeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		if done, err := ok(); err != nil || done {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waiting for %s: nothing after %v", what, deviceTimeout)
		}
		time.Sleep(wait)
	}
}

// waitForFile waits until path exists.
func waitForFile(path string) error {
	return waitFor(path, func() (bool, error) {
		_, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	})
}

// openPort opens the virtio-serial port with that name. Nobody else can open it as long as it is open.
func openPort(name string) (*os.File, error) {
	const class = "/sys/class/virtio-ports"
	var dev string
	err := waitFor("virtio-serial port "+name, func() (bool, error) {
		ports, err := os.ReadDir(class)
		if err != nil {
			return false, err
		}
		for _, p := range ports {
			b, err := os.ReadFile(filepath.Join(class, p.Name(), "name"))
			if err == nil && strings.TrimSpace(string(b)) == name {
				dev = "/dev/" + p.Name()
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("opening port: %w", err)
	}
	return f, nil
}
