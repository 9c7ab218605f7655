package registry

import (
	"errors"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// TestProbe asks registries of several kinds for a tag's digest.
func TestProbe(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func(w http.ResponseWriter) bool // false: by the registry itself
		digest string                           // header; "" is none
		want   bool                             // the digest
		asked  []string
	}{
		{name: "with a digest", digest: "yes", want: true, asked: []string{"HEAD /v2/app/manifests/v1"}},
		{name: "without one", asked: []string{"HEAD /v2/app/manifests/v1"}},
		{name: "of another kind", digest: "sha512:00", asked: []string{"HEAD /v2/app/manifests/v1"}},
		{name: "no HEAD", answer: func(w http.ResponseWriter) bool { w.WriteHeader(http.StatusMethodNotAllowed); return true }, asked: []string{"HEAD /v2/app/manifests/v1", "GET /v2/"}},
		{name: "not there, it says", answer: func(w http.ResponseWriter) bool { w.WriteHeader(http.StatusNotFound); return true }, asked: []string{"HEAD /v2/app/manifests/v1", "GET /v2/"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			d := f.addManifest("v1", []byte(ociManifest))
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodHead {
					return false
				}
				switch tt.digest {
				case "yes":
					w.Header().Set("Docker-Content-Digest", d.Digest.String())
				case "":
				default:
					w.Header().Set("Docker-Content-Digest", tt.digest)
				}
				return tt.answer != nil && tt.answer(w)
			}
			got, err := open(t, f.host(), ":v1", authn.AuthConfig{}).Probe(t.Context())
			want := v1.Hash{}
			if tt.want {
				want = d.Digest
			}
			if err != nil || got != want {
				t.Errorf("%v, %v; want %v", got, err, want)
			}
			if diff := cmp.Diff(tt.asked, f.log()); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		f := newFake(t)
		f.Close()
		if _, err := open(t, f.host(), ":v1", authn.AuthConfig{}).Probe(t.Context()); !errors.Is(err, ErrUnreachable) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("with a token", func(t *testing.T) {
		f := newFake(t)
		f.user, f.password = "u", "p"
		f.addManifest("v1", []byte(ociManifest))
		if _, err := open(t, f.host(), ":v1", authn.AuthConfig{Username: "u", Password: "p"}).Probe(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
