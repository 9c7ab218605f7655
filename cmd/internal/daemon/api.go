// Package daemon is the process that fetches and fills, and its API: HTTP and JSON on a unix socket that only its user may
// open.
//
//	GET    /v1/ping               Pong
//	POST   /v1/open               OpenRequest -> lines of Message, the last one with opened or error
//	GET    /v1/images/KEY/lease   keeps the image in the cache for as long as the answer is open; ?who=&fill=1
//	POST   /v1/images/KEY/need    NeedRequest -> 204 when these bytes are present; 200 with the first of them where the cache takes no more
//	GET    /v1/images/KEY/wait    lines of Message, until the image is sealed
//	POST   /v1/images/KEY/fsck    FsckRequest -> lines of Message, the last one with fsck or error
//	POST   /v1/images/KEY/replay  ReplayRequest -> 204 at once
//	POST   /v1/images/KEY/reads   ReadsRequest -> 204
//	GET    /v1/images/KEY/why     metrics.Why: what its readers waited for
//	DELETE /v1/images/KEY         409 while it is in use or pinned; ?ref= forgets references, too
//	PUT    /v1/images/KEY/pin     204; DELETE ends it
//	GET    /v1/usage              Usage
//	POST   /v1/gc                 GCRequest -> GCResult
//	GET    /v1/profiles           []ProfileSummary
//	PUT    /v1/profiles           a profile -> 204
//	GET    /v1/profiles/ID        a profile
//	DELETE /v1/profiles/ID        204
//	GET    /v1/status             Status
//	POST   /v1/stop               204, then the daemon ends
//	GET    /metrics               Prometheus's text format, or what else it asks for
//	GET    /healthz               Health; 503 where something is wrong
//	GET    /debug/pprof/          of net/http/pprof
//
// Nothing but filling depends on the daemon: views and machines read the image files themselves.
package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/pexfs/pex/cmd/internal/confine"
	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/registry"
	"github.com/pexfs/pex/lazy/store"
)

// OpenRequest asks for an image.
type OpenRequest struct {
	Ref      string `json:"ref"`
	Platform string `json:"platform,omitempty"` // "" is the machine's own
	Fill     bool   `json:"fill"`               // complete the image in the background
	Insecure bool   `json:"insecure,omitempty"` // plain HTTP for a registry that isn't on this machine
	Strict   bool   `json:"strict,omitempty"`   // see lazy.OpenOptions, as the next ones
	Verify   bool   `json:"verify,omitempty"`
	// MaxSize (bytes) and MaxEntries bound what is read of a layer; 0 is the default.
	MaxSize    int64 `json:"maxSize,omitempty"`
	MaxEntries int   `json:"maxEntries,omitempty"`
	// Profile, if it isn't nil, names a profile to look for beside an image that the cache hasn't got, while its layers are read. A replay
	// may follow, so the image isn't filled before it is leased.
	Profile *string `json:"profile,omitempty"`
	// Offline asks no registry, and Pull says when one is asked for a tag: lazy.OpenOptions.
	Offline bool      `json:"offline,omitempty"`
	Pull    lazy.Pull `json:"pull,omitempty"`
	// HostsDirs are folders that say which servers stand for the registry: hosts.Dirs. It is remembered with the reference.
	HostsDirs string `json:"hostsDirs,omitempty"`
	// Auth are the credentials for the reference's registry, and HostAuth those for other servers that stand for it, by host and port. The
	// daemon keeps them in memory only.
	Auth     *authn.AuthConfig           `json:"auth,omitempty"`
	HostAuth map[string]authn.AuthConfig `json:"hostAuth,omitempty"`
}

// Opened is an image that can be read.
type Opened struct {
	Key      store.Key       `json:"key"`
	Ref      string          `json:"ref"` // canonical
	Manifest string          `json:"manifest"`
	Config   json.RawMessage `json:"config"`
	Dir      string          `json:"dir"` // the image's folder in the cache
	State    store.State     `json:"state"`
}

// Message is one line of a streamed answer.
type Message struct {
	Event  *lazy.Event      `json:"event,omitempty"`
	Image  *ImageStatus     `json:"image,omitempty"`
	Opened *Opened          `json:"opened,omitempty"`
	Fsck   *lazy.FsckReport `json:"fsck,omitempty"`
	Error  *Error           `json:"error,omitempty"`
}

// FsckRequest asks for a check of what is present of an image.
type FsckRequest struct {
	Heal bool `json:"heal"` // make damaged blocks anew
	// Auth are the credentials for the registry of Ref, a reference that stands for the image.
	Ref  string            `json:"ref,omitempty"`
	Auth *authn.AuthConfig `json:"auth,omitempty"`
}

// NeedRequest names bytes of the image file.
type NeedRequest struct {
	Off     int64         `json:"off"`
	N       int64         `json:"n"`
	Timeout time.Duration `json:"timeout,omitempty"` // in ns: how long to wait for them; 0 is lazy.Options.ReadTimeout
}

// ImageStatus is what is known of an image.
type ImageStatus struct {
	Key       store.Key     `json:"key"`
	Refs      []string      `json:"refs"`
	Tags      []TagStatus   `json:"tags"` // each of Refs, in the same order
	Manifest  string        `json:"manifest"`
	State     store.State   `json:"state"`
	Filling   bool          `json:"filling"`
	Replaying bool          `json:"replaying,omitempty"` // a profile
	Size      int64         `json:"size"`
	Present   int64         `json:"present"`
	Fetched   int64         `json:"fetched"` // compressed bytes fetched by chunk since the daemon started
	Inodes    int64         `json:"inodes"`
	Root      string        `json:"root,omitempty"`
	Created   time.Time     `json:"created"`
	Layers    []LayerStatus `json:"layers"`
	Users     []string      `json:"users"`
	Error     string        `json:"error,omitempty"`
}

// TagStatus is a reference that stands for an image.
type TagStatus struct {
	Ref   string    `json:"ref"`
	Asked time.Time `json:"asked"` // when its registry last said that it does
}

// LayerStatus is a layer of an image, bottom first. Visible and Present are known of an image that isn't sealed.
type LayerStatus struct {
	store.Layer
	Visible int64 `json:"visible,omitempty"` // bytes of its contents that the image shows
	Present int64 `json:"present,omitempty"` // how many of these are there
}

// Opening is an image that is being opened: its layers are read.
type Opening struct {
	Ref   string     `json:"ref"`
	Event lazy.Event `json:"event"`
}

// Status is what the daemon does and has.
type Status struct {
	PID     int       `json:"pid"`
	Cache   string    `json:"cache"`
	Socket  string    `json:"socket"` // by which it was asked
	Started time.Time `json:"started"`
	// Confined is what the daemon has given up; nil: nothing.
	Confined *confine.State `json:"confined"`
	Opening  []Opening      `json:"opening"`
	Images   []ImageStatus  `json:"images"`
	// Trouble is why the cache takes no more: filling rests, and what is read isn't kept. It is empty where that is not so.
	Trouble string `json:"trouble,omitempty"`
}

// Error is an error that went over the socket. Code tells the kinds apart that a program reacts to.
type Error struct {
	Code string `json:"code,omitempty"`
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

func (e *Error) Error() string { return e.Text }

// Codes of Error.
const (
	CodeBusy      = "busy"
	CodeNotCached = "not-cached"
	CodeCorrupt   = "corrupt" // bytes came that are not what a digest says
	CodeFull      = "full"    // the cache takes no more
)

var errBusy = errors.New("in use")

func toError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	e = &Error{Text: err.Error()}
	switch {
	case errors.Is(err, fs.ErrPermission):
		e.Hint = fmt.Sprintf("the daemon, which is user %d, may not: others' files it reads only with their leave", os.Geteuid())
	case errors.Is(err, errBusy):
		e.Code = CodeBusy
	case errors.Is(err, lazy.ErrBusy):
		e.Code, e.Hint = CodeBusy, "`pexfs wait` waits until it is complete"
	case errors.Is(err, lazy.ErrAmbiguous):
		e.Hint = "without --strict the image is opened, with this decided as the OCI image-spec has it"
	case errors.Is(err, layer.ErrLimit):
		e.Hint = "--max-size and --max-entries set other limits"
	case errors.Is(err, lazy.ErrOffline):
		e.Hint = "with a network, `pexfs wait` completes an image that was opened"
	case errors.Is(err, lazy.ErrUnknownTag):
		e.Hint = "without --pull never its registry is asked once"
	case errors.Is(err, blob.ErrDigestMismatch):
		e.Code = CodeCorrupt
	case errors.Is(err, store.ErrUnwritable):
		e.Code, e.Hint = CodeFull, "what is mounted can still be read; filling goes on by itself when the cache folder can be written to"
	case errors.Is(err, store.ErrNotCached):
		e.Code = CodeNotCached
	case errors.Is(err, registry.ErrUnauthorized):
		e.Hint = "log in with `docker login` or `podman login`, or check that the name is right"
	case errors.Is(err, registry.ErrNotFound):
		e.Hint = "check the name and the tag"
	case errors.Is(err, registry.ErrUnreachable):
		e.Hint = "check the network and the registry's name; what is cached already opens without it, by default or with --pull missing"
	}
	return e
}

func status(e *Error) int {
	switch e.Code {
	case CodeBusy:
		return http.StatusConflict
	case CodeNotCached:
		return http.StatusNotFound
	}
	return http.StatusInternalServerError
}
