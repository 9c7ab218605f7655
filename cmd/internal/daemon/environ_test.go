package daemon

import (
	"strings"
	"testing"
)

// TestFromEnvironment has flags and variables say how a daemon logs.
func TestFromEnvironment(t *testing.T) {
	for name, c := range map[string]struct {
		args                []string
		env                 map[string]string
		format, level, addr string
		asked               bool
		err                 string
	}{
		"neither":       {format: "text", level: "INFO"},
		"the variables": {env: map[string]string{"PEX_LOG_FORMAT": "json", "PEX_LOG_LEVEL": "debug", "PEX_METRICS_LISTEN": ":9123"}, format: "json", level: "DEBUG", addr: ":9123"},
		"both": {args: []string{"--log-format", "text", "--log-level", "warn", "--metrics-listen", ""}, env: map[string]string{"PEX_LOG_FORMAT": "json", "PEX_LOG_LEVEL": "debug", "PEX_METRICS_LISTEN": ":9123"},
			format: "text", level: "WARN", asked: true},
		"nonsense": {env: map[string]string{"PEX_LOG_LEVEL": "loud"}, err: `PEX_LOG_LEVEL="loud"`},
	} {
		t.Run(name, func(t *testing.T) {
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			dir := t.TempDir()
			cmd := Command(&dir, "test")
			f := cmd.Flags()
			if err := f.Parse(c.args); err != nil {
				t.Fatal(err)
			}
			err := setFromEnvironment(f)
			if c.err != "" || err != nil {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				return
			}
			for flag, want := range map[string]string{"log-format": c.format, "log-level": c.level, metricsFlag: c.addr} {
				if got := f.Lookup(flag).Value.String(); got != want {
					t.Errorf("--%s is %q, want %q", flag, got, want)
				}
			}
			if f.Changed(metricsFlag) != c.asked {
				t.Errorf("--metrics-listen is asked for: %v, want %v", !c.asked, c.asked)
			}
		})
	}
}
