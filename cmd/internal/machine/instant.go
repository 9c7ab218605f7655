package machine

import (
	"time"

	"golang.org/x/sys/unix"
)

// Instant is a moment by CLOCK_MONOTONIC, which all processes of the host share, in nanoseconds.
type Instant int64

// Now is this moment.
func Now() Instant {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0 // no Linux is without this clock
	}
	return Instant(ts.Nano())
}

// Since is how long an earlier moment was ago.
func (i Instant) Since(earlier Instant) time.Duration { return time.Duration(i - earlier) }
