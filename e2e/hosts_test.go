package e2e

import (
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/pexfs/pex/e2e/faultreg"
)

// TestHosts mounts an image of a registry that nobody has, from a mirror behind TLS with an authority of its own, and reads it by another daemon.
// When the mirror is gone its server is asked.
func TestHosts(t *testing.T) {
	good := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	pushFixture(t, good, formStargz)
	want := madeOf(t, fixture())
	mirror := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ns := r.URL.Query().Get("ns"); r.URL.Path != "/v2/" && ns != "registry.invalid:5000" {
			t.Errorf("the mirror was asked for what of %q: %s", ns, r.URL)
		}
		good.ServeHTTP(w, r)
	}))
	mirror.Config.ErrorLog = log.New(io.Discard, "", 0)
	mirror.StartTLS()
	defer mirror.Close()
	server, err := faultreg.Start(good)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()

	dirs := t.TempDir()
	dir := filepath.Join(dirs, "registry.invalid_5000_")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: mirror.Certificate().Raw})
	conf := "server = \"http://" + server.Addr() + "\"\n[host.\"" + mirror.URL + "\"]\nca = \"mirror.pem\"\nnovelty = true\n" // which isn't known
	for name, b := range map[string][]byte{"mirror.pem": ca, "hosts.toml": []byte(conf)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := newLab(t)
	const image = "registry.invalid:5000/estargz:latest"
	at := l.mount("-q", "--no-fill", "--hosts-dir", dirs, image)
	l.do("pexfs", "daemon", "stop") // the next one is to know the way
	if err := readTogether(at); err != nil {
		t.Error(err)
	}
	l.do("pexfs", "convert", "-q", "--hosts-dir", dirs, image, "oci:"+filepath.Join(t.TempDir(), "converted"))
	l.do("pexfs", "image", "build", "-q", "--hosts-dir", dirs, image, "-o", filepath.Join(t.TempDir(), "image.erofs"))
	if c := server.Counts(); c.Blobs > 0 { // for a profile it is, as the mirror has none
		t.Errorf("the server was asked: %+v", c)
	}
	mirror.Close()
	same(t, want, at)
	if c := server.Counts(); c.Blobs == 0 {
		t.Errorf("the server was not asked: %+v", c)
	}

	bad := strings.Replace(conf, "mirror.pem", "none.pem", 1)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(bad), 0o600); err != nil {
		t.Fatal(err)
	}
	l.fails(1, []string{filepath.Join(dir, "hosts.toml") + ", line 3: ", "none.pem"}, "pexfs", "mount", "--pull", "always", "--hosts-dir", dirs, image, t.TempDir())
}
