package ref

import (
	"encoding/json"
	"errors"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// FuzzPlatform reads platforms. What is accepted is normal, and reads as itself again.
func FuzzPlatform(f *testing.F) {
	for _, s := range []string{"linux/amd64", "arm64", "arm/v6", "linux/arm/7", "macos/x86_64", "windows", "linux/arm64/v8.1", "LINUX/AArch64", "a/b/c/d", "i386/v1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePlatform(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("error %v", err)
			}
			return
		}
		if p.OS == "" || p.Architecture == "" || p != NewPlatform(p.OS, p.Architecture, p.Variant) {
			t.Fatalf("%q is %+v, which is not normal", s, p)
		}
		if again, err := ParsePlatform(p.String()); err != nil || again != p {
			t.Errorf("%q is %s, which is %v, %v", s, p, again, err)
		}
	})
}

// FuzzSelect reads indexes and manifests, as they come from wherever images do, and picks of an index. What a document is called, it is
// called again; what is picked is an image of the index for the platform, or for one whose programs it runs.
func FuzzSelect(f *testing.F) {
	for _, s := range []string{
		`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"digest":"sha256:` + hex64 + `","platform":{"os":"linux","architecture":"amd64"}}]}`,
		`{"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json","manifests":[{"mediaType":"application/vnd.docker.distribution.manifest.v2+json","platform":{"os":"linux","architecture":"arm","variant":"v5"}},` +
			`{"mediaType":"application/vnd.oci.image.index.v1+json"},{"platform":{"os":"unknown","architecture":"unknown"}}]}`,
		`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}`,
		`{"schemaVersion":1,"manifests":[],"layers":[]}`,
	} {
		f.Add([]byte(s), "", "linux/amd64")
		f.Add([]byte(s), string(types.OCIImageIndex), "linux/arm64/v9")
	}
	f.Fuzz(func(t *testing.T, body []byte, said, platform string) {
		kind, err := Kind(body, types.MediaType(said))
		if err != nil {
			if !errors.Is(err, ErrUnsupported) {
				t.Errorf("error %v", err)
			}
			return
		}
		if again, err := Kind(body, kind); err != nil || again != kind || !kind.IsImage() && !kind.IsIndex() {
			t.Errorf("said to be %q it is %q, said to be that it is %q, %v", said, kind, again, err)
		}
		p, err := ParsePlatform(platform)
		var ix v1.IndexManifest
		if err != nil || json.Unmarshal(body, &ix) != nil {
			return
		}
		d, err := Select(p, ix.Manifests)
		if err != nil {
			var none *NoPlatformError
			if !errors.As(err, &none) || none.Want != p || err.Error() == "" {
				t.Errorf("error %v", err)
			}
			return
		}
		if !IsImage(d) {
			t.Errorf("%+v is no image", d)
		}
		if d.Platform == nil {
			return
		}
		is := NewPlatform(d.Platform.OS, d.Platform.Architecture, d.Platform.Variant)
		if is.OS != p.OS || len(d.Platform.OSFeatures) > 0 {
			t.Errorf("%s is picked for %s", is, p)
		}
		for _, o := range ix.Manifests {
			if o.Platform != nil && IsImage(o) && len(o.Platform.OSFeatures) == 0 && NewPlatform(o.Platform.OS, o.Platform.Architecture, o.Platform.Variant) == p && is != p {
				t.Errorf("%s is picked for %s, which is there", is, p)
			}
		}
	})
}
