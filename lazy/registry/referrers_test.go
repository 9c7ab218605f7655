package registry

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func TestReferrers(t *testing.T) {
	hash := func(c string) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: strings.Repeat(c, 64)} }
	subject := hash("a")
	one := v1.Descriptor{MediaType: types.OCIManifestSchema1, Size: 7, Digest: hash("1"), ArtifactType: "type/wanted", Annotations: map[string]string{"a": "b"}}
	two := v1.Descriptor{MediaType: types.OCIManifestSchema1, Size: 8, Digest: hash("2"), ArtifactType: "type/other"}
	negative := one
	negative.Size = -1
	index := func(ds ...v1.Descriptor) string {
		b, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: ds})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	type answer struct {
		status int
		body   string
	}
	for _, tt := range []struct {
		name      string
		api, tag  answer
		want      []v1.Descriptor
		err       error
		errText   string
		wantCalls int
	}{
		{name: "the API", api: answer{200, index(one, two)}, want: []v1.Descriptor{one}, wantCalls: 1},
		{name: "none", api: answer{200, index()}, wantCalls: 1},
		{name: "the tag", api: answer{404, ""}, tag: answer{200, index(two, one)}, want: []v1.Descriptor{one}, wantCalls: 2},
		{name: "neither", api: answer{404, "404 page not found"}, tag: answer{404, ""}, wantCalls: 2},
		{name: "an old registry", api: answer{405, ""}, tag: answer{404, ""}, wantCalls: 2},
		{name: "a size below zero", api: answer{200, index(negative)}, wantCalls: 1},
		{name: "denied", api: answer{403, ""}, err: ErrUnauthorized, wantCalls: 1},
		{name: "not an index", api: answer{200, "<html>"}, errText: "listing referrers of sha256:aaa", wantCalls: 1},
		{name: "too long", api: answer{200, strings.Repeat(" ", maxManifest+1)}, errText: "more than", wantCalls: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			calls := 0
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				a := tt.api
				switch r.URL.Path {
				case "/v2/app/referrers/" + subject.String():
					if got := r.URL.Query().Get("artifactType"); got != "type/wanted" {
						t.Errorf("artifacts of type %q are asked for", got)
					}
				case "/v2/app/manifests/sha256-" + subject.Hex:
					a = tt.tag
				default:
					return false
				}
				calls++
				w.WriteHeader(a.status)
				_, _ = w.Write([]byte(a.body)) // the client may have gone
				return true
			}
			got, err := open(t, f.host(), ":v1", authn.AuthConfig{}).Referrers(t.Context(), subject, "type/wanted")
			if tt.err != nil || tt.errText != "" {
				if tt.err != nil && !errors.Is(err, tt.err) || err == nil || !strings.Contains(err.Error(), tt.errText) {
					t.Errorf("error %v, want %v %q", err, tt.err, tt.errText)
				}
			} else if err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error("-want +got:", diff)
			}
			if calls != tt.wantCalls {
				t.Errorf("%d requests, want %d", calls, tt.wantCalls)
			}
		})
	}
	f := newFake(t)
	if _, err := open(t, f.host(), ":v1", authn.AuthConfig{}).Referrers(t.Context(), v1.Hash{Algorithm: "sha256", Hex: "../.."}, "x"); err == nil || len(f.log()) > 0 {
		t.Errorf("a digest that is none: %v", err)
	}
}
