package daemon

import (
	"fmt"
	"os"

	"github.com/spf13/pflag"
)

// fromEnvironment are variables that stand for flags of `daemon` which aren't given: a daemon that another program starts has that one's
// environment, but not the flags of the one before. The cache's size has one, too: see sizeEnv.
var fromEnvironment = [...]struct{ variable, flag string }{
	{"PEX_METRICS_LISTEN", metricsFlag}, {"PEX_LOG_LEVEL", "log-level"}, {"PEX_LOG_FORMAT", "log-format"},
}

const metricsFlag = "metrics-listen"

// setFromEnvironment sets flags that aren't given.
func setFromEnvironment(f *pflag.FlagSet) error {
	for _, e := range fromEnvironment {
		value := os.Getenv(e.variable)
		if value == "" || f.Changed(e.flag) {
			continue
		}
		if err := f.Lookup(e.flag).Value.Set(value); err != nil { // not f.Set: it stays one that isn't given
			return fmt.Errorf("reading %s=%q: %w", e.variable, value, err)
		}
	}
	return nil
}
