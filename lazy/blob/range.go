package blob

import "fmt"

// CheckRange says whether off and n are a range that Fetch of a blob of size bytes accepts.
func CheckRange(size, off, n int64) error {
	if off < 0 || n <= 0 || off > size || n > size-off {
		return fmt.Errorf("range of %d bytes from %d is not within a blob of %d bytes", n, off, size)
	}
	return nil
}
