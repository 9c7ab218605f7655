package view

import (
	"context"
	"time"

	"github.com/pexfs/pex/cmd/internal/daemon"
	"github.com/pexfs/pex/lazy/profile"
)

// Record says that what is read first becomes the profile of a command.
type Record struct {
	Manifest string `json:"manifest"` // of the image, SHA-256 in hex
	Name     string `json:"name"`     // see profile.Name; empty: of whatever reads it
}

// What is read is handed to the daemon when nothing new was read for recordQuiet, in the end, and after recordTime, from when on the
// image is no longer starting and nothing more is noted.
const (
	recordQuiet = 2 * time.Second
	recordTime  = 2 * time.Minute
	recordLast  = time.Second // that the daemon may take in the end
)

// record hands over what is read until ctx ends.
func (im *Image) record(ctx context.Context, r Record) {
	over := time.NewTimer(recordTime)
	defer over.Stop()
	tick := time.NewTicker(recordQuiet / 4)
	defer tick.Stop()
	var sent time.Time // what was noted up to then
	send := func() {
		last := im.reads.Last()
		if last.Equal(sent) {
			return
		}
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordLast)
		defer cancel()
		// a daemon that is gone isn't started for this
		if im.c.Reads(sctx, im.key, readsRequest(r, im.reads.Reads())) == nil {
			sent = last
		}
	}
	for {
		select {
		case <-tick.C:
			if time.Since(im.reads.Last()) >= recordQuiet {
				send()
			}
			continue
		case <-over.C:
		case <-ctx.Done():
		}
		im.reads.End()
		send()
		return
	}
}

func readsRequest(r Record, reads []profile.Read) daemon.ReadsRequest {
	req := daemon.ReadsRequest{Manifest: r.Manifest, Name: r.Name, Reads: make([][3]int64, len(reads))}
	for i, t := range reads {
		req.Reads[i] = [3]int64{t.Block, t.Blocks, t.At.Milliseconds()}
	}
	return req
}

// startRecording begins to note what is read.
func (im *Image) startRecording(ctx context.Context, r Record) {
	im.reads = profile.NewRecorder(im.Size())
	ctx, im.endReads = context.WithCancel(ctx)
	im.recorded.Go(func() { im.record(ctx, r) })
}
