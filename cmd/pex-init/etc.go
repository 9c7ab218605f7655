//go:build linux

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// writeEtc writes the files that say who and where the machine is, in place of the image's.
func writeEtc(cfg config) error {
	if err := os.MkdirAll("/etc", 0o755); err != nil {
		return fmt.Errorf("writing /etc: %w", err)
	}
	err := errors.Join(
		replaceFile("/etc/hostname", cfg.hostname+"\n"),
		replaceFile("/etc/hosts", hosts(cfg)),
	)
	if len(cfg.dns) > 0 {
		err = errors.Join(err, replaceFile("/etc/resolv.conf", resolvConf(cfg)))
	}
	return err
}

func hosts(cfg config) string {
	own := "127.0.1.1"
	if cfg.ip.IsValid() {
		own = cfg.ip.Addr().String()
	}
	return "127.0.0.1\tlocalhost\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\n" +
		"ff00::\tip6-mcastprefix\n" +
		"ff02::1\tip6-allnodes\n" +
		"ff02::2\tip6-allrouters\n" +
		own + "\t" + cfg.hostname + "\n"
}

func resolvConf(cfg config) string {
	var b strings.Builder
	for _, a := range cfg.dns {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	return b.String()
}

// replaceFile writes a file in place of whatever has that name, which it doesn't follow if it is a symbolic link.
func replaceFile(path, content string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Close())
}
