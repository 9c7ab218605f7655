// Package size reads and writes numbers of bytes as people do.
package size

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is a flag: a number of bytes, or of KiB, MiB, GiB or TiB with k, m, g or t.
type Bytes int64

// String is the shortest form that Set takes.
func (s *Bytes) String() string {
	n, unit := int64(*s), 0
	for n != 0 && n%1024 == 0 && unit < 4 {
		n /= 1024
		unit++
	}
	return strconv.FormatInt(n, 10) + [...]string{"", "k", "m", "g", "t"}[unit]
}

// Type names the flag's value in usage messages.
func (s *Bytes) Type() string { return "size" }

// Set reads a size.
func (s *Bytes) Set(text string) error {
	low := strings.ToLower(text)
	digits := strings.TrimRight(low, "bkmgt")
	shift, ok := map[string]int{"": 0, "b": 0, "k": 10, "kb": 10, "m": 20, "mb": 20, "g": 30, "gb": 30, "t": 40, "tb": 40}[low[len(digits):]]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !ok || n <= 0 {
		return errors.New("want a number of bytes, or one with k, m, g or t")
	}
	if n > math.MaxInt64>>shift {
		return fmt.Errorf("%s is more than can be counted", text)
	}
	*s = Bytes(n << shift)
	return nil
}
