package ref

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// ErrUnsupported is wrapped where something is named that isn't an image of a kind this program knows.
var ErrUnsupported = errors.New("unsupported kind of image")

// Kind is the media type of a manifest or an index, said being what its medium calls it or empty. It refuses documents
// that contradict that, and those that different readers take for different things (CVE-2021-41190).
func Kind(body []byte, said types.MediaType) (types.MediaType, error) {
	var m struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     types.MediaType `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return "", fmt.Errorf("%w: the manifest is not JSON: %w", ErrUnsupported, err)
	}
	kind := said
	switch {
	case said.IsImage() || said.IsIndex():
		if m.MediaType != "" && m.MediaType != said {
			return "", fmt.Errorf("%w: a manifest that calls itself %.100q came as %q", ErrUnsupported, m.MediaType, said)
		}
	case m.MediaType != "":
		kind = m.MediaType
	case m.Manifests != nil:
		kind = types.OCIImageIndex
	case m.Config != nil:
		kind = types.OCIManifestSchema1
	}
	switch {
	case m.SchemaVersion == 1 || kind == types.DockerManifestSchema1 || kind == types.DockerManifestSchema1Signed:
		return "", fmt.Errorf("%w: a manifest of docker's old schema 1", ErrUnsupported)
	case !kind.IsImage() && !kind.IsIndex():
		return "", fmt.Errorf("%w: media type %.100q", ErrUnsupported, kind)
	case m.Manifests != nil && (m.Layers != nil || m.Config != nil):
		return "", fmt.Errorf("%w: a manifest that is an index too", ErrUnsupported)
	}
	return kind, nil
}
