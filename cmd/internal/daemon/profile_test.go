package daemon

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pexfs/pex/lazy/profile"
)

// TestProfiles tells a daemon what was read and asks for it again, rightly and wrongly.
func TestProfiles(t *testing.T) {
	s := newServer(t, t.TempDir())
	defer func() {
		s.stop()
		s.end()
		if err := s.cache.Close(); err != nil {
			t.Error(err)
		}
		if err := s.st.Close(); err != nil {
			t.Error(err)
		}
	}()
	o, err := s.openImage(s.ctx, OpenRequest{Ref: "oci:" + writeLayout(t), Fill: true, Profile: new(string)}, newLines(httptest.NewRecorder()))
	if err != nil {
		t.Fatal(err)
	}
	im, err := s.cache.Image(t.Context(), o.Key)
	if err != nil {
		t.Fatal(err)
	}
	if im.Filling() {
		t.Error("the image is filled before it is leased")
	}
	h := s.routes()
	do := func(method, path, body string) (int, string) {
		t.Helper()
		w := httptest.NewRecorder()
		r, err := http.NewRequestWithContext(s.ctx, method, strings.ReplaceAll(path, "KEY", string(o.Key)), strings.NewReader(strings.ReplaceAll(body, "MANIFEST", o.Manifest)))
		if err != nil {
			t.Fatal(err)
		}
		h.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	list := func() (all []ProfileSummary) {
		t.Helper()
		code, body := do("GET", "/v1/profiles", "")
		if err := json.Unmarshal([]byte(body), &all); err != nil || code != http.StatusOK {
			t.Fatalf("%d %s", code, body)
		}
		return all
	}
	for _, c := range []struct {
		name, path, body, say string
		code                  int
	}{
		{"replay of nothing", "/v1/images/KEY/replay", `{"manifest":"MANIFEST","name":"a"}`, "", 204},
		{"replay of another image", "/v1/images/KEY/replay", `{"manifest":"` + strings.Repeat("0", 64) + `","name":"a"}`, "not in the cache", 404},
		{"replay of no digest", "/v1/images/KEY/replay", `{"manifest":"../x"}`, "not a SHA-256", 500},
		{"no key", "/v1/images/00/replay", `{"manifest":"MANIFEST"}`, "not an image key", 500},
		{"an unknown image", "/v1/images/" + strings.Repeat("0", 64) + "/replay", `{"manifest":"MANIFEST"}`, "not in the cache", 404},
		{"no JSON", "/v1/images/KEY/replay", `{`, "reading request", 500},
		{"reads outside", "/v1/images/KEY/reads", `{"manifest":"MANIFEST","name":"a","reads":[[-1,1,0]]}`, "recording profile", 500},
		{"reads without end", "/v1/images/KEY/reads", `{"manifest":"MANIFEST","name":"a","reads":[[0,9223372036854775807,0]]}`, "recording profile", 500},
		{"too many reads", "/v1/images/KEY/reads", `{"manifest":"MANIFEST","reads":[` + strings.Repeat("[0,1,0],", profile.MaxTouches) + `[0,1,0]]}`, "more than", 500},
		{"a long body", "/v1/images/KEY/reads", `{"manifest":"` + strings.Repeat("0", profile.MaxSize) + `"}`, "reading request", 500},
		{"a long name", "/v1/images/KEY/reads", fmt.Sprintf(`{"manifest":"MANIFEST","name":"%s","reads":[[0,%d,0]]}`, strings.Repeat("x", profile.MaxName+1), im.Info().Size/profile.BlockSize), "not a profile", 500},
		{"metadata", "/v1/images/KEY/reads", `{"manifest":"MANIFEST","name":"a","reads":[[0,1,0]]}`, "", 204},
	} {
		t.Run(c.name, func(t *testing.T) {
			if code, body := do("POST", c.path, c.body); code != c.code || !strings.Contains(body, c.say) {
				t.Errorf("%d %s, want %d and %q", code, body, c.code, c.say)
			}
		})
	}
	if all := list(); len(all) != 0 {
		t.Fatalf("there are %+v", all)
	}
	// a short run, a longer one, and a shorter one again
	blocks := im.Info().Size / profile.BlockSize
	layerBytes := func(n int64) int64 {
		t.Helper()
		body := fmt.Sprintf(`{"manifest":"MANIFEST","name":"a","reads":[[0,%d,7]]}`, n)
		if code, b := do("POST", "/v1/images/KEY/reads", body); code != 204 {
			t.Fatalf("%d %s", code, b)
		}
		if all := list(); len(all) == 1 && all[0].Name == "a" && all[0].Origin == Recorded {
			return all[0].Bytes
		}
		return 0
	}
	var sizes []int64
	for n := int64(512); n <= blocks; n++ {
		sizes = append(sizes, layerBytes(n))
	}
	last := sizes[len(sizes)-1]
	if last == 0 || sizes[0] != 0 || layerBytes(1) != last {
		t.Errorf("the recordings name %d bytes, in the end %d", sizes, layerBytes(1))
	}
	all := list()
	code, text := do("GET", "/v1/profiles/"+all[0].ID, "")
	p, err := profile.Decode([]byte(text))
	if code != 200 || err != nil || p.Image != "sha256:"+o.Manifest || p.Name != "a" {
		t.Errorf("%d %s, %v", code, text, err)
	}
	// what was imported stays
	p.Touches = p.Touches[:1]
	p.Touches[0].N = 1
	b, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if code, body := do("PUT", "/v1/profiles", string(b)); code != 204 {
		t.Errorf("%d %s", code, body)
	}
	if layerBytes(blocks); list()[0].Origin != Imported {
		t.Errorf("there are %+v", list())
	}
	for body, say := range map[string]string{"": "not a profile", "{}": "not a profile", strings.Repeat(" ", profile.MaxSize+1): "too large"} {
		if code, got := do("PUT", "/v1/profiles", body); code < 400 || !strings.Contains(got, say) {
			t.Errorf("%.20q is answered with %d %s", body, code, got)
		}
	}
	for _, path := range []string{"/v1/profiles/..%2F..%2Fversion", "/v1/profiles/x", "/v1/profiles/" + strings.Repeat("0", 64)} {
		for _, method := range []string{"GET", "DELETE"} {
			if code, body := do(method, path, ""); code < 400 {
				t.Errorf("%s %s: %d %s", method, path, code, body)
			}
		}
	}
	if code, body := do("DELETE", "/v1/profiles/"+all[0].ID, ""); code != 204 || len(list()) != 0 {
		t.Errorf("%d %s", code, body)
	}
}
