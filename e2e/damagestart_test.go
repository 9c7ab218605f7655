package e2e

import (
	"os"
	"strings"
	"testing"
)

// TestDamageAtStart damages a complete image of which nobody has anything open. Who starts to use it looks at a few blocks, the first and
// those of the metadata among them: the image is healed first, with a warning, or isn't used where it can't be.
func TestDamageAtStart(t *testing.T) {
	l := newLab(t)
	image := fixtureImage(t, formStargz)
	dir := l.mount(image)
	s := l.seal(dir)
	before, want := shaFile(t, s.file), list(t, dir)
	big := find(t, s.file, "bin/big").content
	const warning = "pexfs: warning: "
	end := func() {
		t.Helper()
		l.do("pexfs", "umount", dir)
		l.do("pexfs", "daemon", "stop")
	}
	for _, via := range []string{"fuse", "erofs"} {
		end()
		damage(t, s.file, 1024, big+4096)
		if out := l.do("pexfs", "mount", "--via", via, image, dir); strings.Count(out, warning) != 1 || !strings.Contains(out, "block 0 ") {
			t.Errorf("mounting by %s said %q", via, out)
		}
		if d := diff(want, list(t, dir)); d != "" {
			t.Errorf("by %s, before and after:\n%s", via, d)
		}
		if now := l.seal(image); now.Root != s.Root || shaFile(t, s.file) != before {
			t.Errorf("by %s the image is another, of root %s", via, now.Root)
		}
	}
	end()
	if out := l.do("pexfs", "mount", image, dir); strings.Contains(out, warning) {
		t.Errorf("of an image that was healed: %q", out)
	}

	end()
	damage(t, s.file, 1024, big+4096)
	layout := strings.TrimPrefix(image, "oci:")
	if err := os.Rename(layout, layout+".away"); err != nil {
		t.Fatal(err)
	}
	l.fails(1, []string{"is damaged", "block 0 ", "healing it"}, "pexfs", "mount", "--pull", "never", image, dir)
	if err := os.Rename(layout+".away", layout); err != nil {
		t.Fatal(err)
	}
	l.do("pexfs", "mount", image, dir)
	if l.seal(image); shaFile(t, s.file) != before {
		t.Error("with its source again the image is another")
	}
}

// TestDamageAtRun is TestDamageAtStart with a machine.
func TestDamageAtRun(t *testing.T) {
	l := newLab(t)
	ref := "oci:" + l.build + "/image/demo-estargz:latest"
	dir := l.mount(ref)
	s := l.seal(dir)
	before := shaFile(t, s.file)
	l.umount(dir)
	l.do("pexfs", "daemon", "stop")
	damage(t, s.file, 1024)
	out, code := l.try("pex", "run", ref, "echo", "well")
	if code != 0 || !strings.HasPrefix(out, "well\n") || strings.Count(out, "pex: warning: ") != 1 || !strings.Contains(out, "block 0 ") {
		t.Errorf("the machine ended with %d: %s", code, out)
	}
	if shaFile(t, s.file) != before {
		t.Error("the image is another")
	}
}
