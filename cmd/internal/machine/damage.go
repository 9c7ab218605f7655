package machine

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"regexp"
)

// maxConsoleLine bounds what damageWatch keeps of a line, in bytes.
const maxConsoleLine = 256

// corruption is what dm-verity has to say (Linux: drivers/md/dm-verity-target.c,
// verity_handle_err).
const corruption = `device-mapper: verity: \S+ (data|metadata) block ([0-9]{1,19}) is corrupted`

// damageWatch passes a guest's console on to w and looks in it for blocks of the root
// that dm-verity refused: the program that wanted them got an I/O error and can't
// tell more. It is called from one goroutine.
type damageWatch struct {
	w         io.Writer
	ref       string // the image's name
	log       *slog.Logger
	corrupted *regexp.Regexp
	line      []byte
}

func newDamageWatch(w io.Writer, ref string, log *slog.Logger) *damageWatch {
	return &damageWatch{w: w, ref: ref, log: log, corrupted: regexp.MustCompile(corruption)}
}

// Write is what w does.
func (d *damageWatch) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		part, after, ended := bytes.Cut(rest, []byte("\n"))
		rest = after
		d.line = append(d.line, part[:min(len(part), maxConsoleLine-len(d.line))]...)
		if !ended {
			break
		}
		if m := d.corrupted.FindSubmatch(d.line); m != nil {
			of := "the image"
			if string(m[1]) == "metadata" {
				of = "the image's Merkle tree"
			}
			d.log.Warn(fmt.Sprintf("block %s of %s is damaged, and the machine refused it: `pexfs fsck %s` mends it", m[2], of, d.ref))
		}
		d.line = d.line[:0]
	}
	return d.w.Write(p)
}
