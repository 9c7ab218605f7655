package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// guestFlag is the only argument of this program in a machine, before the folder to read.
const guestFlag = "-guest"

// guestUp is the line that it says first.
const guestUp = "up"

// guest is this program in a machine: it says that it is up, reads a folder, says its digest, and stays until its standard input ends.
func guest(dir string) error {
	fmt.Println(guestUp)
	h := sha256.New()
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		fmt.Fprintf(h, "%s\n", strings.TrimPrefix(name, "/"))
		_, err = io.Copy(h, f)
		return err
	})
	if err != nil {
		return err
	}
	fmt.Println(hex.EncodeToString(h.Sum(nil)))
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// guestDigest is the digest that guest says of files, which are in the order of their names.
func guestDigest(files []file) string {
	h := sha256.New()
	for _, f := range files {
		fmt.Fprintf(h, "%s\n", f.name)
		h.Write(f.content)
	}
	return hex.EncodeToString(h.Sum(nil))
}
