//go:build linux

package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// verityBlock is the size of data and hash blocks, in bytes.
const verityBlock = 4096

// verity is what proves a disk: a tree of SHA-256 hashes without salt behind a superblock that isn't looked at, since
// nothing vouches for it (Linux: Documentation/admin-guide/device-mapper/verity.rst).
type verity struct {
	hashes string // device
	blocks int64  // of the disk
	root   string // in hex
}

// parseVerity reads DATA:HASH:BLOCKS:ROOT.
func parseVerity(s string) (data string, v verity, err error) {
	f := strings.Split(s, ":")
	if len(f) != 4 {
		return "", verity{}, errors.New("not DATA:HASH:BLOCKS:ROOT")
	}
	data, v.hashes, v.root = f[0], f[1], f[3]
	if !strings.HasPrefix(data, "/dev/") || !strings.HasPrefix(v.hashes, "/dev/") {
		return "", verity{}, errors.New("not a device")
	}
	v.blocks, err = strconv.ParseInt(f[2], 10, 64)
	if err != nil || v.blocks < 1 || v.blocks > 1<<48 {
		return "", verity{}, errors.New("not a number of blocks")
	}
	if root, err := hex.DecodeString(v.root); err != nil || len(root) != 32 {
		return "", verity{}, errors.New("not a SHA-256")
	}
	return data, v, nil
}

// table gives dm-verity's parameters for the disk data.
func (v verity) table(data string) string {
	const version, hashStart = 1, 1
	return fmt.Sprintf("%d %s %s %d %d %d %d sha256 %s -", version, data, v.hashes, verityBlock, verityBlock, v.blocks, hashStart, v.root)
}

// mountVerity mounts the root so that blocks that aren't what its Merkle root stands for can't be read: that fails with
// EIO. There is no DAX this way, since every block is copied to be checked.
func mountVerity(cfg config, flags uintptr) error {
	for _, dev := range []string{cfg.source, cfg.verity.hashes, dmControl} {
		if err := waitForFile(dev); err != nil {
			return err
		}
	}
	dev, err := mapDevice("root", dmTarget{
		sectors: uint64(cfg.verity.blocks) * (verityBlock / sectorSize), kind: "verity", params: cfg.verity.table(cfg.source),
	})
	if err != nil {
		return err
	}
	if err := waitForFile(dev); err != nil {
		return err
	}
	err = mount(dev, lowerDir, "erofs", flags, "")
	if errors.Is(err, unix.EIO) {
		return fmt.Errorf("the image or its tree of hashes is not what the Merkle root %.16s… stands for: %w", cfg.verity.root, err)
	}
	return err
}
