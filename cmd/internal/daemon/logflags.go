package daemon

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/pflag"
)

// logFlags say how a daemon logs.
type logFlags struct {
	format, file string
	level        slog.Level
	debug        bool
}

func (l *logFlags) flags(f *pflag.FlagSet) {
	f.StringVar(&l.format, "log-format", "text", "text, or json: an object for each line; $PEX_LOG_FORMAT stands for it")
	f.TextVar(&l.level, "log-level", slog.LevelInfo, "log what is at least: debug, info, warn or error; $PEX_LOG_LEVEL stands for it")
	f.StringVar(&l.file, "log-file", "", "log to this file, not to standard error; it is bounded: what is older is in FILE.old, or gone")
	f.BoolVar(&l.debug, "debug", false, "the same as --log-level debug")
}

// logger makes the logger that the flags ask for.
func (l *logFlags) logger() (*slog.Logger, error) {
	o := &slog.HandlerOptions{Level: l.level}
	if l.debug {
		o.Level = slog.LevelDebug
	}
	var w io.Writer = os.Stderr
	if l.file != "" {
		f, err := openLog(l.file, logMost, 1, 2)
		if err != nil {
			return nil, err
		}
		w = f
	}
	switch l.format {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, fmt.Errorf("--log-format %s: not text or json", l.format)
}
