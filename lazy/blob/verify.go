package blob

import (
	"encoding/hex"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Verify says whether b is what want promises; if not, the error wraps ErrDigestMismatch.
func Verify(b []byte, want v1.Hash) error {
	h, err := v1.Hasher(want.Algorithm)
	if err != nil {
		return err
	}
	h.Write(b)
	if got := hex.EncodeToString(h.Sum(nil)); got != want.Hex {
		return fmt.Errorf("%w: it is %s:%s, want %s", ErrDigestMismatch, want.Algorithm, got, want)
	}
	return nil
}
