package ref

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func TestParsePlatform(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"linux/amd64", "linux/amd64"},
		{"linux/x86_64", "linux/amd64"},
		{"linux/amd64/v1", "linux/amd64"},
		{"linux/amd64/v3", "linux/amd64/v3"},
		{"linux/arm64/v8", "linux/arm64"},
		{"linux/aarch64", "linux/arm64"},
		{"linux/arm64/v9", "linux/arm64/v9"},
		{"linux/arm", "linux/arm/v7"},
		{"linux/arm/6", "linux/arm/v6"},
		{"linux/armhf", "linux/arm/v7"},
		{"arm64", "linux/arm64"},
		{"arm/v6", "linux/arm/v6"},
		{"Linux/AMD64", "linux/amd64"},
		{"windows/amd64", "windows/amd64"},
		{"linux/i386", "linux/386"},
		{"plan9/amd64", "plan9/amd64"},
	} {
		p, err := ParsePlatform(tt.in)
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
		} else if p.String() != tt.want {
			t.Errorf("%s: got %v, want %v", tt.in, p, tt.want)
		}
	}
	for _, in := range []string{"", "/", "linux/", "a/b/c/d", "linux/amd 64", "linux/\x00", strings.Repeat("x", 100)} {
		if p, err := ParsePlatform(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, %v", in, p, err)
		}
	}
	if p := DefaultPlatform(); p.OS != "linux" || p.Architecture == "" {
		t.Errorf("DefaultPlatform() = %v", p)
	}
}

// index makes an index of platforms; its entries' artifact types are their places.
func index(platforms ...string) []v1.Descriptor {
	var ds []v1.Descriptor
	for _, s := range platforms {
		d := v1.Descriptor{MediaType: types.OCIManifestSchema1, ArtifactType: s}
		switch s, kind, _ := strings.Cut(s, " "); {
		case kind == "artifact":
			d.MediaType = "application/x-other"
			d.Platform = &v1.Platform{OS: "linux", Architecture: "amd64"}
		case kind == "attestation":
			d.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
		case s != "":
			parts := append(strings.Split(s, "/"), "")
			d.Platform = &v1.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
			if kind == "features" {
				d.Platform.OSFeatures = []string{"erofs"}
			}
			if kind == "index" {
				d.MediaType = types.OCIImageIndex
			}
		}
		ds = append(ds, d)
	}
	return ds
}

func TestSelect(t *testing.T) {
	for _, tt := range []struct {
		name, platform string
		index          []string
		want           string // the entry, or what the error says
	}{
		{"exact", "linux/amd64", []string{"linux/arm64/v8", "linux/amd64"}, "linux/amd64"},
		{"first of equals", "linux/amd64", []string{"linux/amd64", "linux/amd64/v1"}, "linux/amd64"},
		{"arm64 default is v8", "linux/arm64", []string{"linux/arm/v7", "linux/arm64/v8"}, "linux/arm64/v8"},
		{"arm64 v8 finds none", "linux/arm64/v8", []string{"linux/arm64"}, "linux/arm64"},
		{"arm64 falls back to the best arm", "linux/arm64", []string{"linux/arm/v6", "linux/arm/v7"}, "linux/arm/v7"},
		{"arm64 v9 runs v8", "linux/arm64/v9", []string{"linux/arm/v7", "linux/arm64"}, "linux/arm64"},
		{"arm64 v8.1 runs v8", "linux/arm64/v8.1", []string{"linux/arm64/v8"}, "linux/arm64/v8"},
		{"arm v7 prefers v6 to v5", "linux/arm", []string{"linux/arm/v5", "linux/arm/v6"}, "linux/arm/v6"},
		{"arm v6 can't run v7", "linux/arm/v6", []string{"linux/arm/v7"}, "only for linux/arm/v7"},
		{"amd64 v3 runs v2", "linux/amd64/v3", []string{"linux/amd64", "linux/amd64/v2", "linux/amd64/v4"}, "linux/amd64/v2"},
		{"amd64 can't run v3", "linux/amd64", []string{"linux/amd64/v3"}, "no image for linux/amd64 in the index, only for linux/amd64/v3"},
		{"amd64 runs 386", "linux/amd64", []string{"linux/386"}, "linux/386"},
		{"spelling", "linux/amd64", []string{"Linux/x86_64"}, "Linux/x86_64"},
		{"other os", "linux/amd64", []string{"windows/amd64"}, "only for windows/amd64"},
		{"attestations", "linux/s390x", []string{"unknown/unknown", "linux/amd64", " attestation"}, "only for linux/amd64"},
		{"artifact", "linux/amd64", []string{" artifact"}, "lists no platforms"},
		{"features", "linux/amd64", []string{"linux/amd64 features", "linux/amd64"}, "linux/amd64"},
		{"nested", "linux/amd64", []string{"linux/amd64 index"}, "linux/amd64 index"},
		{"no platform last", "linux/amd64", []string{"", "linux/amd64"}, "linux/amd64"},
		{"no platform only", "linux/amd64", []string{"linux/arm64", ""}, ""},
		{"empty", "linux/amd64", nil, "lists no platforms"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := ParsePlatform(tt.platform)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Select(p, index(tt.index...))
			var none *NoPlatformError
			switch {
			case errors.As(err, &none):
				if !strings.Contains(err.Error(), tt.want) || tt.want == "" {
					t.Errorf("error %q, want %q", err, tt.want)
				}
			case err != nil:
				t.Fatal(err)
			default:
				if diff := cmp.Diff(tt.want, got.ArtifactType); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}
