package registry

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/pexfs/pex/lazy/blob"
)

// TestQuoted has servers quote what they were sent: no error has it.
func TestQuoted(t *testing.T) {
	const password, refresh = `pass/1f0c+9b`, "refresh-9d3e55"
	basic := base64.StdEncoding.EncodeToString([]byte("me:" + password))
	secrets := []string{password, url.QueryEscape(password), basic, url.QueryEscape(basic), refresh, "token-1"}
	quote := func(r *http.Request) string {
		_, given, _ := r.BasicAuth()
		form, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		return fmt.Sprintf("got %q, %s, %s", r.Header["Authorization"], given, form)
	}
	refuse := func(w http.ResponseWriter, status int, message string) {
		b, err := json.Marshal(map[string]any{"errors": []any{map[string]any{"code": "DENIED", "message": message}}})
		if err != nil {
			t.Error(err)
		}
		w.WriteHeader(status)
		fmt.Fprint(w, strings.ReplaceAll(string(b), "/", `\/`)) // as some do
	}
	for name, c := range map[string]struct {
		auth    authn.AuthConfig
		bearer  bool
		answer  func(w http.ResponseWriter, r *http.Request) // to who has the credentials
		says    string
		wrapped error
	}{
		"basic": {auth: authn.AuthConfig{Username: "me", Password: password}, says: "DENIED: got", wrapped: ErrUnauthorized,
			answer: func(w http.ResponseWriter, r *http.Request) { refuse(w, http.StatusForbidden, quote(r)) }},
		"encoded": {auth: authn.AuthConfig{Auth: basic}, says: "DENIED: got", wrapped: ErrUnauthorized,
			answer: func(w http.ResponseWriter, r *http.Request) { refuse(w, http.StatusForbidden, quote(r)) }},
		"a token": {auth: authn.AuthConfig{Username: "me", Password: password}, bearer: true, says: "DENIED: got", wrapped: ErrUnauthorized,
			answer: func(w http.ResponseWriter, r *http.Request) { refuse(w, http.StatusForbidden, quote(r)+refresh) }},
		"cut in its midst": {auth: authn.AuthConfig{Username: "me", Password: password}, says: "DENIED: long", wrapped: ErrUnauthorized,
			answer: func(w http.ResponseWriter, r *http.Request) {
				refuse(w, http.StatusForbidden, "long"+strings.Repeat(".", maxMessage-10)+password)
			}},
		"in the path of a redirect": {auth: authn.AuthConfig{Username: "me", Password: password}, says: "/elsewhere/", wrapped: ErrNotFound,
			answer: func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.URL.Path, "/elsewhere/") {
					w.WriteHeader(http.StatusNotFound)
					return
				}
				http.Redirect(w, r, "/elsewhere/"+basic, http.StatusTemporaryRedirect)
			}},
		"as a digest": {auth: authn.AuthConfig{Username: "me", Password: password}, says: "digest", wrapped: blob.ErrDigestMismatch,
			answer: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Docker-Content-Digest", "sha256:"+basic)
				fmt.Fprint(w, ociManifest)
			}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				_, given, _ := r.BasicAuth()
				switch {
				case r.URL.Path == "/token":
					fmt.Fprintf(w, `{"token":"token-1","refresh_token":%q}`, refresh)
				case c.bearer && r.Header.Get("Authorization") != "Bearer token-1":
					w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="fake"`, f.URL))
					w.WriteHeader(http.StatusUnauthorized)
				case !c.bearer && given != password:
					w.Header().Set("WWW-Authenticate", `Basic realm="fake"`)
					w.WriteHeader(http.StatusUnauthorized)
				default:
					c.answer(w, r)
				}
				return true
			}
			_, err := open(t, f.host(), ":v1", c.auth).Resolve(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.says) || !errors.Is(err, c.wrapped) {
				t.Fatalf("error %v, want %q", err, c.says)
			}
			for _, s := range append(secrets, password[:6]) {
				if strings.Contains(err.Error(), s) {
					t.Errorf("%s is in: %v", s, err)
				}
			}
		})
	}
}
