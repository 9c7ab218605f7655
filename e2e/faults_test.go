package e2e

import (
	"bytes"
	"errors"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/pexfs/pex/e2e/faultreg"
)

// outcome is what comes of a mount and its readers under a fault. Never is it a wrong byte.
type outcome string

const (
	right   outcome = "right bytes"
	eio     outcome = "EIO"           // and right bytes when the fault is over
	refused outcome = "no mount"      // and one when the fault is over
	pausing outcome = "EIO, for long" // right bytes when another daemon asks
)

// faultRow is a fault of a registry, and what becomes of it. FAULTS.md has a row of the same name.
type faultRow struct {
	name   string
	form   form                                 // of the image; estargz if it is empty
	flags  []string                             // of mount, beside --no-fill
	before faultreg.Faults                      // from before the mount
	during faultreg.Faults                      // once it is there
	act    func(*testing.T, *faultreg.Registry) // meanwhile, in a goroutine
	want   outcome
	log    []string // what the daemon's log must say
	blobs  int      // the most requests for blobs while it was read; 0: any number
	tokens int      // of tokens
	quiet  bool     // the log must have no warning
}

// registryFaults are the faults of registries.
func registryFaults() []faultRow {
	const layers = 2
	after := func(d time.Duration, f func(*testing.T, *faultreg.Registry)) func(*testing.T, *faultreg.Registry) {
		return func(t *testing.T, r *faultreg.Registry) {
			time.Sleep(d)
			f(t, r)
		}
	}
	end := func(_ *testing.T, r *faultreg.Registry) { r.Set(faultreg.Faults{}) }
	up := func(t *testing.T, r *faultreg.Registry) {
		if err := r.Up(); err != nil {
			t.Error(err)
		}
	}
	down := func(t *testing.T, r *faultreg.Registry) {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	return []faultRow{
		{name: "answers are slow", during: faultreg.Faults{Latency: 20 * time.Millisecond}, want: right, quiet: true},
		{name: "no answers, for a while", during: faultreg.Faults{Silent: true}, act: after(5500*time.Millisecond, end), want: right,
			log: []string{"no data comes", "url=http://", "waited=5", "data comes again"}},
		{name: "no answers, for longer than a read waits", flags: []string{"--io-timeout", "1s"}, during: faultreg.Faults{Silent: true}, want: eio, log: []string{"read fails", "no data for 1s"}},
		{name: "bodies are cut", during: faultreg.Faults{Cut: true, Times: 3}, want: right, quiet: true},
		{name: "bodies are cut while a layer is read whole", form: formGzip, before: faultreg.Faults{Cut: true, Times: 3}, want: right, quiet: true},
		{name: "500 for a moment", during: faultreg.Faults{Status: 500, Times: 2}, want: right, quiet: true},
		{name: "503 for long", during: faultreg.Faults{Status: 503}, want: eio, log: []string{"giving up after 6 attempts", "503"}},
		{name: "404 for a layer", during: faultreg.Faults{Status: 404}, want: eio, log: []string{"404"}, blobs: 8},
		{name: "403 for a layer", during: faultreg.Faults{Status: 403}, want: eio, log: []string{"403"}, blobs: 8},
		{name: "404 for a layer that is read whole", form: formGzip, before: faultreg.Faults{Status: 404}, want: refused},
		{name: "429 that asks for a second", during: faultreg.Faults{Status: 429, RetryAfter: 1, Times: 1}, want: right, quiet: true},
		{name: "429 that asks for ten minutes", during: faultreg.Faults{Status: 429, RetryAfter: 600}, want: pausing,
			log: []string{"to be left alone "}, blobs: 8},
		{name: "ranges are ignored", during: faultreg.Faults{Range: faultreg.RangeIgnored}, want: right, blobs: 8, quiet: true},
		{name: "ranges are ignored from the start", before: faultreg.Faults{Range: faultreg.RangeIgnored}, want: right, blobs: layers, quiet: true},
		{name: "ranges are ignored, of a layer that is read whole", form: formGzip, before: faultreg.Faults{Range: faultreg.RangeIgnored}, want: right, quiet: true},
		{name: "416 for ranges", during: faultreg.Faults{Range: faultreg.RangeRefused}, want: right, blobs: 8, quiet: true},
		{name: "ranges are shorter than asked for", during: faultreg.Faults{Range: faultreg.RangeShort}, want: right, quiet: true},
		{name: "ranges of other bytes", during: faultreg.Faults{Range: faultreg.RangeWrong}, want: right, blobs: 8, quiet: true},
		{name: "other bytes, once", during: faultreg.Faults{Range: faultreg.RangeMislabels, Times: 1}, want: right, log: []string{"wrong bytes came"}},
		{name: "other bytes, always", during: faultreg.Faults{Range: faultreg.RangeMislabels}, want: eio, log: []string{"wrong bytes came", "read fails"}},
		{name: "a bit is flipped, once", during: faultreg.Faults{Corrupt: true, Times: 1}, want: right, log: []string{"wrong bytes came", "digest mismatch"}},
		{name: "a bit is flipped, always", during: faultreg.Faults{Corrupt: true}, want: eio, log: []string{"digest mismatch", "read fails"}},
		{name: "a bit is flipped in layers that are read whole", form: formGzip, before: faultreg.Faults{Corrupt: true}, want: refused},
		{name: "bodies that never end", during: faultreg.Faults{Endless: true}, want: right, quiet: true},
		{name: "no Content-Length", before: faultreg.Faults{Chunked: true}, during: faultreg.Faults{Chunked: true}, want: right, quiet: true},
		{name: "no HEAD", flags: []string{"--pull", "newer"}, before: faultreg.Faults{NoHead: true}, want: right, quiet: true},
		{name: "no Docker-Content-Digest", flags: []string{"--pull", "newer"}, before: faultreg.Faults{NoDigest: true}, want: right, quiet: true},
		{name: "the token expires", before: faultreg.Faults{Auth: true}, during: faultreg.Faults{Auth: true},
			act: func(_ *testing.T, r *faultreg.Registry) { r.ExpireTokens() }, want: right, tokens: 1, quiet: true},
		{name: "links to another host expire", before: faultreg.Faults{Auth: true, Redirect: true}, during: faultreg.Faults{Auth: true, Redirect: true},
			act: func(_ *testing.T, r *faultreg.Registry) { r.ExpireLinks() }, want: right, blobs: layers, quiet: true},
		{name: "the registry is gone", act: down, want: eio, log: []string{"connection refused"}},
		{name: "the registry is gone for a moment", act: func(t *testing.T, r *faultreg.Registry) {
			down(t, r)
			time.Sleep(500 * time.Millisecond)
			up(t, r)
		}, want: right, quiet: true},
	}
}

// TestFaults mounts an image from a registry with each of the faults, reads it by many readers, and again when the fault is over.
func TestFaults(t *testing.T) {
	good := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	want := madeOf(t, fixture())
	for _, f := range []form{formStargz, formGzip} {
		pushFixture(t, good, f)
	}
	for _, row := range registryFaults() {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			reg, err := faultreg.Start(good)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { reg.Close() })
			row.try(t, reg, want)
		})
	}
}

// pushFixture gives a registry the fixture, with small chunks, as a repository called after its form.
func pushFixture(t *testing.T, good http.Handler, f form) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), string(f))
	if err := writeImage(dir, f, packing{chunk: 64 << 10}, tars(fixture())); err != nil {
		t.Fatal(err)
	}
	reg, err := faultreg.Start(good) // without a fault
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	l, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	ix, err := l.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	img, err := l.Image(ix.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(reg.Addr()+"/"+string(f)+":latest", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
}

func (row faultRow) try(t *testing.T, reg *faultreg.Registry, want files) {
	l := newLab(t)
	f := row.form
	if f == "" {
		f = formStargz
	}
	image := reg.Addr() + "/" + string(f)
	flags := append([]string{"mount", "-q", "--no-fill"}, row.flags...)
	mount := func() (string, string, int) {
		dir := t.TempDir()
		t.Cleanup(func() { l.umount(dir) })
		out, code := l.try("pexfs", append(slices.Clone(flags), image, dir)...)
		return dir, out, code
	}
	reg.Set(row.before)
	dir, out, code := mount()
	if row.want == refused {
		if code != 1 || !strings.Contains(out, "pexfs: error: ") {
			t.Fatalf("mounting ended with %d: %s", code, out)
		}
		reg.Set(faultreg.Faults{})
		time.Sleep(1100 * time.Millisecond) // a refusal is remembered for a moment
		dir, out, code = mount()
	}
	if code != 0 {
		t.Fatalf("mounting ended with %d: %s", code, out)
	}
	if slices.Contains(row.flags, "--pull") { // the tag is asked for again
		l.umount(dir)
		if dir, out, code = mount(); code != 0 || out != "" {
			t.Fatalf("mounting again ended with %d: %s", code, out)
		}
	}
	if row.want != refused && row.during != (faultreg.Faults{}) {
		reg.Set(row.during)
	}
	reg.Counts()
	var acting sync.WaitGroup
	if row.act != nil {
		acting.Go(func() { row.act(t, reg) })
		time.Sleep(20 * time.Millisecond)
	}
	err := readTogether(dir)
	acting.Wait()
	counts := reg.Counts()
	switch {
	case row.want == right || row.want == refused:
		if err != nil {
			t.Errorf("reading: %v", err)
		}
	case !errors.Is(err, syscall.EIO):
		t.Errorf("reading: %v, not EIO", err)
	}
	if row.blobs > 0 && counts.Blobs > row.blobs || row.tokens > 0 && counts.Tokens != row.tokens || counts.Leaked > 0 {
		t.Errorf("the registry counted %+v; want at most %d for blobs, %d for tokens", counts, row.blobs, row.tokens)
	}
	if row.want == eio || row.want == pausing {
		reg.Set(faultreg.Faults{})
		_ = reg.Up() // unless it was
		if row.want == pausing {
			l.do("pexfs", "daemon", "stop")
		}
		time.Sleep(1100 * time.Millisecond)
	}
	same(t, want, dir)
	l.umount(dir)
	said, err := os.ReadFile(filepath.Join(l.cache, "daemon.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range row.log {
		if !bytes.Contains(said, []byte(s)) {
			t.Errorf("the daemon's log doesn't say %q", s)
		}
	}
	if row.quiet && (bytes.Contains(said, []byte("level=WARN")) || bytes.Contains(said, []byte("level=ERROR"))) {
		t.Error("the daemon's log has warnings")
	}
}

// readTogether has eight read the large file of the fixture, each a part of it, and gives an error of theirs.
func readTogether(dir string) error {
	const readers = 8
	want := noise(1, 3<<20)
	part := len(want) / readers
	f, err := os.Open(filepath.Join(dir, "bin/big"))
	if err != nil {
		return err
	}
	errs := make([]error, readers)
	var wg sync.WaitGroup
	for i := range readers {
		wg.Go(func() {
			b := make([]byte, part)
			if _, err := f.ReadAt(b, int64(i*part)); err != nil {
				errs[i] = err
			} else if !bytes.Equal(b, want[i*part:][:part]) {
				errs[i] = errors.New("wrong bytes")
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil && !errors.Is(err, syscall.EIO) {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(append(errs, f.Close())...)
}

// TestFaultTable holds FAULTS.md to the tests: each of its rows names one that there is, and each fault of a registry has a row.
func TestFaultTable(t *testing.T) {
	text, err := os.ReadFile("FAULTS.md")
	if err != nil {
		t.Fatal(err)
	}
	test := regexp.MustCompile("^`(?:([a-z0-9/]+): )?(Test[A-Za-z]+)(?:/(.+))?`$")
	var listed []string
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) < 2 || strings.HasPrefix(cells[0], "-") || strings.TrimSpace(cells[0]) == "fault" || !strings.HasPrefix(line, "|") {
			continue
		}
		m := test.FindStringSubmatch(strings.TrimSpace(cells[len(cells)-1]))
		if len(cells) != 6 || m == nil {
			t.Errorf("not a row of six cells, the last of which names a test: %s", line)
			continue
		}
		if m[1] == "" && m[2] == "TestFaults" {
			if row := strings.TrimSpace(cells[0]); row != m[3] {
				t.Errorf("the row of %q names TestFaults/%s", row, m[3])
			}
			listed = append(listed, m[3])
			continue
		}
		dir := "."
		if m[1] != "" {
			dir = filepath.Join("..", m[1])
		}
		if !hasTest(t, dir, m[2]) {
			t.Errorf("%s has no test %s", dir, m[2])
		}
	}
	var rows []string
	for _, row := range registryFaults() {
		rows = append(rows, row.name)
	}
	slices.Sort(rows)
	slices.Sort(listed)
	if !slices.Equal(rows, listed) {
		t.Errorf("TestFaults has\n%s\nand FAULTS.md\n%s", strings.Join(rows, "\n"), strings.Join(listed, "\n"))
	}
}

// hasTest says whether the tests in a folder have one of this name.
func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("\nfunc "+name+"(t *testing.T)")) {
			return true
		}
	}
	return false
}
