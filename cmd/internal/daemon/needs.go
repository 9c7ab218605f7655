package daemon

import (
	"cmp"
	"context"
	"fmt"
	"time"
)

// needsMost bounds the connections that the readers of one image take, however many they are; needTime is lazy.Options.ReadTimeout.
const (
	needsMost = 64
	needTime  = time.Minute
)

// begin waits until few enough Needs are under way, which done makes fewer. What is left of the time that r has is in r then.
func (c *Client) begin(ctx context.Context, r *NeedRequest) (done func(), err error) {
	r.Timeout = cmp.Or(r.Timeout, needTime)
	began := time.Now()
	limited, cancel := context.WithTimeoutCause(ctx, r.Timeout, fmt.Errorf("no data for %v", r.Timeout))
	defer cancel()
	select {
	case c.needs <- struct{}{}:
		r.Timeout = max(r.Timeout-time.Since(began), time.Nanosecond)
		return func() { <-c.needs }, nil
	case <-limited.Done():
		return nil, context.Cause(limited)
	}
}
