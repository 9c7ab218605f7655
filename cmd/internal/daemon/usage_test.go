package daemon

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pexfs/pex/lazy/store"
)

func ask(t *testing.T, s *server, method, path, body string, v any) (code int) {
	t.Helper()
	w := httptest.NewRecorder()
	s.routes().ServeHTTP(w, request(t, s, method, path, strings.NewReader(body)))
	if v != nil {
		if err := json.Unmarshal(w.Body.Bytes(), v); err != nil {
			t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
		}
	}
	return w.Code
}

// TestPinnedAndCollected has images pinned, leased, read by a process that has no lease, just opened, and unused: only the last goes.
func TestPinnedAndCollected(t *testing.T) {
	s, o := testServer(t)
	path := "/v1/images/" + string(o.Key)
	gc := func() (names []string) {
		var res GCResult
		for _, dry := range []string{"true", "false"} {
			if code := ask(t, s, "POST", "/v1/gc", `{"all":true,"dryRun":`+dry+`}`, &res); code != http.StatusOK {
				t.Fatal(code)
			}
		}
		for _, g := range res.Removed {
			if g.What == "image" {
				names = append(names, g.Name)
			}
		}
		return names
	}
	if got := gc(); got != nil {
		t.Errorf("just opened: removed %q", got)
	}
	s.handedOver(o.Key, true)
	if code := ask(t, s, "PUT", path+"/pin", "", nil); code != http.StatusNoContent {
		t.Errorf("pinning: %d", code)
	}
	if got := gc(); got != nil {
		t.Errorf("pinned: removed %q", got)
	}
	if code := ask(t, s, "DELETE", path, "", nil); code != http.StatusConflict {
		t.Errorf("removing what is pinned: %d", code)
	}
	var u Usage
	if ask(t, s, "GET", "/v1/usage", "", &u); len(u.Images) != 1 || !u.Images[0].Pinned || u.Images[0].Disk == 0 || u.Total < u.Images[0].Disk || u.Budget < u.Total {
		t.Errorf("usage says %+v", u)
	}
	if code := ask(t, s, "DELETE", path+"/pin", "", nil); code != http.StatusNoContent {
		t.Errorf("unpinning: %d", code)
	}
	l := &lease{who: "me"}
	s.addLease(o.Key, l)
	if got := gc(); got != nil {
		t.Errorf("leased: removed %q", got)
	}
	s.dropLease(o.Key, l)
	v, err := store.OpenView(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := gc(); got != nil {
		t.Errorf("read: removed %q", got)
	}
	if code := ask(t, s, "DELETE", path, "", nil); code != http.StatusConflict {
		t.Errorf("removing what is read: %d", code)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if got := gc(); len(got) != 1 || got[0] != string(o.Key) {
		t.Errorf("unused: removed %q", got)
	}
	for _, d := range []string{"images", "refs", "records", "blobs"} {
		if left, err := os.ReadDir(filepath.Join(s.st.Dir(), d)); err != nil || len(left) > 0 {
			t.Errorf("in %s are %v left, %v", d, left, err)
		}
	}
	if code := ask(t, s, "PUT", path+"/pin", "", nil); code != http.StatusNotFound {
		t.Errorf("pinning what is gone: %d", code)
	}
}

func TestCacheSize(t *testing.T) {
	st, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, flag, env, kept string
		want                  int64
		bad, logged           bool
	}{
		{name: "nothing said"},
		{name: "flag", flag: "20m", env: "30m", want: 20 << 20},
		{name: "kept", want: 20 << 20},
		{name: "environment", env: "30m", want: 30 << 20},
		{name: "kept still", want: 20 << 20},
		{name: "auto", env: "auto"},
		{name: "auto is kept", flag: "auto"},
		{name: "kept auto"},
		{name: "too little", flag: "1k", bad: true},
		{name: "no size", env: "much", bad: true},
		{name: "foreign file", kept: "{{", logged: true},
		{name: "cut off", kept: `{"cacheS`, logged: true},
		{name: "negative", kept: `{"cacheSize":-5}`, logged: true},
		{name: "written anew", flag: "40m", want: 40 << 20},
	} {
		t.Setenv(sizeEnv, tt.env)
		if tt.kept != "" {
			if err := os.WriteFile(settingsFile(st.Dir()), []byte(tt.kept), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		before, _ := os.Stat(settingsFile(st.Dir()))
		var log strings.Builder
		got, err := cacheSize(st, tt.flag, slog.New(slog.NewTextHandler(&log, nil)))
		if got != tt.want || (err != nil) != tt.bad || strings.Contains(log.String(), "config.json") != tt.logged {
			t.Errorf("%s: %d, %v, logged: %s", tt.name, got, err, &log)
		}
		if after, err := os.Stat(settingsFile(st.Dir())); before != nil && tt.flag != "" && !tt.bad && (err != nil || os.SameFile(before, after)) {
			t.Errorf("%s: the file is written over: %v", tt.name, err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(st.Dir(), "tmp")); err != nil || len(left) > 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
}
