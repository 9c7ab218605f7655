package view

import "github.com/pexfs/pex/erofs"

// Check checks the image's whole metadata, as one must before the kernel mounts it: see erofs.Check.
func (im *Image) Check() error {
	return erofs.Check(&metaReader{im.mapped, im.v.Info.MetaOff, im.v.File()}, im.Size())
}
