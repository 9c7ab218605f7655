package lazy

import (
	"errors"
	"syscall"
)

// isDisk tells whether an error is the disk's, not the network's.
func isDisk(err error) bool {
	for _, e := range [...]syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
