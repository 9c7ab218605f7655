// Package profile is what a first run has read of an image, in order, so that the next cold start can fetch it ahead of the program.
//
// A profile names ranges of layers' blobs, not of the image made of them: so it holds for every image that has one of these layers, and
// on every machine. It is trusted to choose an order and nothing else: whoever replays it fetches chunks that the image has anyway, and
// verifies each. Profiles come from anywhere, so Decode bounds everything before it takes memory for it. It is kept and published as
// JSON of at most MaxSize bytes:
//
//	{
//	  "version": 1,
//	  "image": "sha256:…",                     the manifest
//	  "name": "python3 -c 'import numpy'",     the command; empty: whatever is read first
//	  "recorded": "2026-01-02T15:04:05Z",
//	  "layers": ["sha256:…", …],
//	  "touches": [[0, 1048576, 70431, 12], …]  layer, offset, length, milliseconds since the start; in order of first touch
//	}
package profile

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// What a profile may have.
const (
	MaxSize    = 2 << 20 // bytes, encoded
	MaxTouches = 1 << 15
	MaxLayers  = 4096
	MaxName    = 1024 // bytes
	version    = 1
)

// Names of the format: of an OCI artifact, of its one layer, and of the annotation with the profile's name.
const (
	ArtifactType   = "application/vnd.pex.profile"
	MediaType      = "application/vnd.pex.profile.v1+json"
	NameAnnotation = "io.github.pexfs.profile.name"
)

// ErrInvalid is wrapped where bytes are not a profile.
var ErrInvalid = errors.New("not a profile")

// Profile is what was read of an image.
type Profile struct {
	Image    string    // digest of the manifest, sha256:HEX
	Name     string    // of the command: see Name
	Recorded time.Time // whole seconds
	Layers   []string  // digests, sha256:HEX
	Touches  []Touch   // in order of first touch
}

// Touch is a range of a layer's blob, and when it was first needed.
type Touch struct {
	Layer  int   // index in Layers
	Off, N int64 // bytes of the blob; N > 0
	At     time.Duration
}

type encoded struct {
	Version  int        `json:"version"`
	Image    string     `json:"image"`
	Name     string     `json:"name"`
	Recorded time.Time  `json:"recorded"`
	Layers   []string   `json:"layers"`
	Touches  [][4]int64 `json:"touches"`
}

// Bytes is how much of the blobs a profile names.
func (p *Profile) Bytes() (n int64) {
	for _, t := range p.Touches {
		n += t.N
	}
	return n
}

// Encode writes a profile as Decode reads it. Touches that go beyond the limits are left out, the last ones first.
func (p *Profile) Encode() ([]byte, error) {
	e := encoded{version, p.Image, p.Name, p.Recorded.UTC().Truncate(time.Second), p.Layers, make([][4]int64, 0, len(p.Touches))}
	for _, t := range p.Touches[:min(len(p.Touches), MaxTouches)] {
		e.Touches = append(e.Touches, [4]int64{int64(t.Layer), t.Off, t.N, t.At.Milliseconds()})
	}
	for {
		b, err := json.Marshal(e)
		if err != nil {
			return nil, fmt.Errorf("encoding profile: %w", err)
		}
		if len(b) <= MaxSize {
			_, err := Decode(b)
			return b, err
		}
		if len(e.Touches) == 0 {
			return nil, fmt.Errorf("encoding profile: %d bytes without a touch", len(b))
		}
		e.Touches = e.Touches[:len(e.Touches)*3/4]
	}
}

// Decode reads a profile. Its error wraps ErrInvalid.
func Decode(b []byte) (*Profile, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", ErrInvalid, len(b), MaxSize)
	}
	var e encoded
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	switch {
	case e.Version != version:
		return nil, fmt.Errorf("%w that is understood: version %d", ErrInvalid, e.Version)
	case !isDigest(e.Image):
		return nil, fmt.Errorf("%w: image %.80q is not a SHA-256", ErrInvalid, e.Image)
	case len(e.Name) > MaxName:
		return nil, fmt.Errorf("%w: a name of %d bytes", ErrInvalid, len(e.Name))
	case len(e.Layers) > MaxLayers:
		return nil, fmt.Errorf("%w: %d layers", ErrInvalid, len(e.Layers))
	case len(e.Touches) > MaxTouches:
		return nil, fmt.Errorf("%w: %d touches", ErrInvalid, len(e.Touches))
	}
	if i := slices.IndexFunc(e.Layers, func(d string) bool { return !isDigest(d) }); i >= 0 {
		return nil, fmt.Errorf("%w: layer %.80q is not a SHA-256", ErrInvalid, e.Layers[i])
	}
	p := &Profile{Image: e.Image, Name: e.Name, Recorded: e.Recorded, Layers: e.Layers, Touches: make([]Touch, len(e.Touches))}
	const maxAt = math.MaxInt64 / int64(time.Millisecond)
	for i, t := range e.Touches {
		ly, off, n, at := t[0], t[1], t[2], t[3]
		if ly < 0 || ly >= int64(len(e.Layers)) || off < 0 || n <= 0 || off > math.MaxInt64-n || at < 0 || at > maxAt {
			return nil, fmt.Errorf("%w: touch %d is %d", ErrInvalid, i, t)
		}
		p.Touches[i] = Touch{int(ly), off, n, time.Duration(at) * time.Millisecond}
	}
	return p, nil
}

func isDigest(s string) bool {
	const prefix = "sha256:"
	if len(s) != len(prefix)+64 || s[:len(prefix)] != prefix {
		return false
	}
	for _, c := range []byte(s[len(prefix):]) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// ID names an image's profile of a command for files: a SHA-256 in hex.
func ID(image, name string) string {
	h := sha256.Sum256([]byte(image + "\x00" + name))
	return hex.EncodeToString(h[:])
}
