package lazy

import (
	"fmt"
	"time"

	"github.com/pexfs/pex/lazy/profile"
)

// Profile says in terms of its layers' blobs what was read of an image. No block may be in two reads. What can't be fetched by itself
// (metadata, contents of streamed layers) isn't in the profile, which may therefore be empty.
func (im *Image) Profile(manifest, name string, reads []profile.Read) (*profile.Profile, error) {
	pl := im.plan
	if pl == nil { // it is sealed
		var err error
		if pl, err = im.readPlan(); err != nil {
			return nil, err
		}
	}
	p := &profile.Profile{Image: "sha256:" + manifest, Name: name, Recorded: time.Now()}
	blocks := im.file.Info.Size / profile.BlockSize
	left := blocks
	numbers := make(map[uint32]int) // of the image's layers in the profile
	seen := make([]bool, pl.chunks)
	var last time.Duration
	for _, r := range reads {
		if r.Block < 0 || r.Blocks <= 0 || r.Block > blocks-r.Blocks || r.Blocks > left || r.At < 0 {
			return nil, fmt.Errorf("recording profile: a read of %d blocks from %d on, at %v, of an image of %d", r.Blocks, r.Block, r.At, blocks)
		}
		left -= r.Blocks
		last = max(last, r.At)
		from, to := r.Block*profile.BlockSize, (r.Block+r.Blocks)*profile.BlockSize
		for i := pl.find(from); i < pl.extents; i++ {
			e := pl.extent(i)
			if e.off >= to {
				break
			}
			for k := pl.chunkAt(e, max(from-e.off, 0)); k < int(e.first+e.chunks) && e.off+pl.chunk(k).Off < to; k++ {
				if seen[k] {
					continue
				}
				seen[k] = true
				n, ok := numbers[e.layer]
				if !ok {
					n = len(p.Layers)
					numbers[e.layer] = n
					p.Layers = append(p.Layers, im.file.Info.Layers[e.layer].Digest)
				}
				ch := pl.chunk(k)
				if m := len(p.Touches); m > 0 {
					t := &p.Touches[m-1]
					if t.Layer == n && t.Off <= ch.Start && ch.Start <= t.Off+t.N {
						t.N = max(t.N, ch.End-t.Off)
						continue
					}
				}
				p.Touches = append(p.Touches, profile.Touch{Layer: n, Off: ch.Start, N: ch.End - ch.Start, At: last})
			}
		}
	}
	return p, nil
}
