package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// farAway is a way to a registry that takes a while, and counts.
type farAway struct {
	addr   string
	ranges atomic.Int64 // requests for parts of blobs
	all    atomic.Int64
}

// far puts a registry behind a link of 10 ms.
func far(t *testing.T, addr string) *farAway {
	f := new(farAway)
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.all.Add(1)
		if r.Header.Get("Range") != "" {
			f.ranges.Add(1)
		}
		time.Sleep(10 * time.Millisecond)
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	f.addr = strings.TrimPrefix(s.URL, "http://")
	return f
}

// manyFiles are 600 files of 20 kB in 30 folders, and those of them that a program reads, in its order.
func manyFiles() (layer []entry, reads []string) {
	for i := range 600 {
		name := fmt.Sprintf("d%02d/f%02d", i/20, i%20)
		layer = append(layer, entry{name: name, kind: '0', mode: 0o644, content: whole(noise(uint64(i), 20_000))})
	}
	for d := 29; d >= 0; d -= 2 {
		for f := range 6 {
			reads = append(reads, fmt.Sprintf("d%02d/f%02d", d, f))
		}
	}
	return layer, reads
}

// serveMany starts the embedded registry with the image of manyFiles in it.
func (l *lab) serveMany(layer []entry) {
	l.t.Helper()
	dir := l.t.TempDir()
	if err := writeImage(filepath.Join(dir, "image"), formStargz, packing{}, tars([][]entry{layer})); err != nil {
		l.t.Fatal(err)
	}
	l.registry = l.command("pexfs", "registry", "--listen", "127.0.0.1:0", filepath.Join(dir, "registry"))
	out, err := l.registry.StdoutPipe()
	if err == nil {
		err = l.registry.Start()
	}
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(l.stopRegistry)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		l.t.Fatal(err)
	}
	l.addr = strings.TrimSpace(line[strings.LastIndex(line, " ")+1:])
	if b, err := exec.Command("skopeo", "copy", "-q", "--insecure-policy", "--dest-tls-verify=false", "oci:"+filepath.Join(dir, "image")+":latest", "docker://"+l.addr+"/many:latest").CombinedOutput(); err != nil {
		l.t.Fatalf("skopeo: %v\n%s", err, b)
	}
}

// profileLine is what `profile ls --json` says of one.
type profileLine struct {
	ID, Name, Origin string
	Touches          int
	Bytes            int64
}

func (l *lab) profiles() (all []profileLine) {
	l.t.Helper()
	decode(l.t, l.do("pexfs", "profile", "ls", "--json"), &all)
	return all
}

// present is how much is there of the only image, once no profile is replayed.
func (l *lab) present() int64 {
	l.t.Helper()
	for {
		var st struct {
			Images []struct {
				Present   int64
				Replaying bool
			}
		}
		decode(l.t, l.do("pexfs", "status", "--json"), &st)
		if len(st.Images) != 1 {
			l.t.Fatalf("the cache has %d images", len(st.Images))
		}
		if im := st.Images[0]; !im.Replaying {
			return im.Present
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// readAll reads files of a mount and compares them.
func readAll(t *testing.T, dir string, layer []entry, names []string) {
	t.Helper()
	want := map[string][]byte{}
	for _, e := range layer {
		want[e.name] = e.content.bytes()
	}
	for _, n := range names {
		if b, err := os.ReadFile(filepath.Join(dir, n)); err != nil || !bytes.Equal(b, want[n]) {
			t.Fatalf("%s: %d bytes, %v", n, len(b), err)
		}
	}
}

// TestProfile records what a program reads through a mount, and replays it with an empty cache: by a file, and found beside the image.
func TestProfile(t *testing.T) {
	layer, reads := manyFiles()
	first := newLab(t)
	first.serveMany(layer)
	link := far(t, first.addr)
	image := link.addr + "/many:latest"
	file := filepath.Join(t.TempDir(), "profile.json")

	// the first run
	dir := first.mount("--no-fill", image)
	before := link.ranges.Load()
	readAll(t, dir, layer, reads)
	unaided := link.ranges.Load() - before
	first.umount(dir)
	got := first.profiles()
	if len(got) != 1 || got[0].Name != "" || got[0].Origin != "recorded" || got[0].Touches > 15 || got[0].Bytes < 90*20_000 || got[0].Bytes > 95*20_000 {
		t.Fatalf("the profiles are %+v", got)
	}
	first.do("pexfs", "profile", "export", "-o", file, image, "")
	if out := first.do("pexfs", "profile", "show", image, ""); !strings.Contains(out, "ranges    15") {
		t.Errorf("show: %s", out)
	}
	if shown := first.do("pexfs", "profile", "export", got[0].ID[:12]); !json.Valid([]byte(shown)) {
		t.Errorf("export by id: %.200s", shown)
	}

	var replayed int64 // bytes that are there after a replay
	t.Run("imported", func(t *testing.T) {
		l := newLab(t)
		l.do("pexfs", "profile", "import", file)
		before := link.ranges.Load()
		dir := l.mount("--no-fill", image)
		replayed = l.present()
		ranges := link.ranges.Load() - before
		t.Logf("%d range requests with the profile, table of contents and all; %d without, after the mount", ranges, unaided)
		if ranges > 17 || ranges > unaided+2 {
			t.Errorf("the replay took %d requests, reading %d", ranges, unaided)
		}
		before = link.all.Load()
		readAll(t, dir, layer, reads)
		if n := link.all.Load() - before; n != 0 {
			t.Errorf("the program made %d requests", n)
		}
		readAll(t, dir, layer, []string{"d00/f19"})
		l.umount(dir)
		if got := l.profiles(); len(got) != 1 || got[0].Origin != "imported" {
			t.Errorf("the profiles are %+v", got)
		}
	})
	t.Run("none wanted", func(t *testing.T) {
		l := newLab(t)
		l.do("pexfs", "profile", "import", file)
		dir := l.mount("--no-fill", "--no-profile", image)
		if n := l.present(); n > replayed-80*20_000 {
			t.Errorf("%d bytes are there", n)
		}
		readAll(t, dir, layer, reads[:3])
	})
	t.Run("another name", func(t *testing.T) {
		l := newLab(t)
		dir := l.mount("--no-fill", "--profile", "tests", image)
		readAll(t, dir, layer, reads[:3])
		l.umount(dir)
		if got := l.profiles(); len(got) != 1 || got[0].Name != "tests" {
			t.Fatalf("the profiles are %+v", got)
		}
		l.fails(1, []string{"profile -", "not in the cache"}, "pexfs", "profile", "show", image, "")
		l.do("pexfs", "profile", "rm", image, "tests")
		if got := l.profiles(); len(got) != 0 {
			t.Errorf("the profiles are %+v", got)
		}
		l.fails(1, []string{"profile tests", "not in the cache"}, "pexfs", "profile", "rm", image, "tests")
	})

	t.Run("nothing to pull", func(t *testing.T) {
		l := newLab(t)
		l.fails(1, []string{"pulling profiles", "none is beside it"}, "pexfs", "profile", "pull", image)
	})
	if out := first.do("pexfs", "profile", "push", image, ""); !strings.Contains(out, "@sha256:") {
		t.Errorf("push: %s", out)
	}
	first.do("pexfs", "profile", "push", "--all", image)
	t.Run("found", func(t *testing.T) {
		l := newLab(t)
		dir := l.mount("--no-fill", image)
		for end := time.Now().Add(30 * time.Second); l.present() < replayed; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d bytes are there, not %d; profiles %+v", l.present(), replayed, l.profiles())
			}
		}
		before := link.all.Load()
		readAll(t, dir, layer, reads)
		if n := link.all.Load() - before; n != 0 {
			t.Errorf("the program made %d requests", n)
		}
		if got := l.profiles(); len(got) != 1 || got[0].Origin != "found" {
			t.Errorf("the profiles are %+v", got)
		}
	})
	t.Run("pulled", func(t *testing.T) {
		l := newLab(t)
		l.do("pexfs", "profile", "pull", image)
		want := got[0]
		want.Origin = "imported"
		if diff := cmp.Diff([]profileLine{want}, l.profiles()); diff != "" {
			t.Error("the profiles (-want +got):", diff)
		}
	})
	t.Run("hostile", func(t *testing.T) {
		l := newLab(t)
		for name, b := range map[string]string{"empty": "", "not JSON": "<html>", "no profile": "{}", "too long": strings.Repeat(" ", 3<<20)} {
			bad := filepath.Join(t.TempDir(), "bad")
			if err := os.WriteFile(bad, []byte(b), 0o600); err != nil {
				t.Fatal(err)
			}
			l.in(t).fails(1, []string{"importing profile", "not a profile"}, "pexfs", "profile", "import", bad)
			if len(l.profiles()) > 0 {
				t.Errorf("%s: it was taken", name)
			}
		}
	})
}
