package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"golang.org/x/sys/unix"
)

// TestStrict builds the image of each case of package treetest with --strict: an ambiguous one is refused with the first ambiguity, any
// other is built.
func TestStrict(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	refused := 0
	for _, c := range imageCases(t) {
		if err := writeImage(filepath.Join(dir, c.Name), formGzip, packing{}, caseTars(t, c)); err != nil {
			t.Fatalf("case %s: %v", c.Name, err)
		}
		args := []string{"image", "build", "-q", "--strict", "-o", filepath.Join(dir, "image.erofs"), "oci:" + filepath.Join(dir, c.Name)}
		if len(c.Ambiguous) == 0 {
			l.do("pexfs", args...)
			continue
		}
		refused++
		// "layer 1, entry 2 "NAME": WHAT": the message has the layer's digest instead of its number
		_, entry, ok := strings.Cut(c.Ambiguous[0], ", ")
		if !ok {
			t.Fatalf("case %s: ambiguity %q", c.Name, c.Ambiguous[0])
		}
		l.fails(1, []string{"the image is ambiguous", "layer sha256:", entry}, "pexfs", args...)
	}
	if refused < 30 {
		t.Errorf("only %d cases are ambiguous", refused)
	}
}

// TestStrictMount refuses an ambiguous image that is cached already, and lets it be mounted without --strict.
func TestStrictMount(t *testing.T) {
	l := newLab(t)
	dir := filepath.Join(t.TempDir(), "image")
	layer := []entry{{name: "../a", kind: '0', mode: 0o644, content: whole([]byte("a"))}}
	if err := writeImage(dir, formStargz, packing{}, tars([][]entry{layer})); err != nil {
		t.Fatal(err)
	}
	mnt := t.TempDir()
	words := []string{"the image is ambiguous", `"../a": the name climbs above the root`}
	l.fails(1, words, "pexfs", "mount", "--strict", "oci:"+dir, mnt)
	l.mount("oci:" + dir)
	l.fails(1, words, "pexfs", "mount", "--strict", "oci:"+dir, mnt)
}

// lie changes the table of contents of an eStargz layer and all digests with it, so that nothing but the layer's own tar tells of it.
func lie(t *testing.T, b []byte, change func(toc *estargz.JTOC)) (lying []byte, tocDigest string) {
	t.Helper()
	const footer = estargz.FooterSize
	// the footer's extra field: "SG", its length, the offset in 16 hexadecimal digits, "STARGZ"
	var off int64
	if _, err := fmt.Sscanf(string(b[len(b)-footer+16:][:16]), "%016x", &off); err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(b[off : len(b)-footer]))
	if err != nil {
		t.Fatal(err)
	}
	tr := tar.NewReader(z)
	h, err := tr.Next()
	if err != nil {
		t.Fatal(err)
	}
	var toc estargz.JTOC
	if err := json.NewDecoder(tr).Decode(&toc); err != nil {
		t.Fatal(err)
	}
	change(&toc)
	text, err := json.Marshal(toc)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	out.Write(b[:off])
	zw := gzip.NewWriter(&out)
	tw := tar.NewWriter(zw)
	h.Size = int64(len(text))
	if err := tw.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	if _, err := tw.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	out.Write(b[len(b)-footer:])
	return out.Bytes(), sum(text).String()
}

// lyingImage is the fixture as eStargz with a table of contents that says something else of etc/hosts' owner.
func lyingImage(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "lying")
	err := writeLayers(dir, len(fixture()), func(i int) (packed, error) {
		p, err := packLayer(tars(fixture())[i], formStargz, packing{})
		if err != nil || i == 0 {
			return p, err
		}
		p.b, p.annotations[estargz.TOCJSONDigestAnnotation] = lie(t, p.b, func(toc *estargz.JTOC) {
			for _, e := range toc.Entries {
				if e.Name == "etc/hosts" {
					e.UID = 0
				}
			}
		})
		z, err := gzip.NewReader(bytes.NewReader(p.b))
		if err != nil {
			return p, err
		}
		tar, err := io.ReadAll(z)
		p.diffID = sum(tar)
		return p, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir
}

// TestVerifyFull has an image whose table of contents verifies by its digest and says another thing than its layer: --verify full refuses it,
// and from then on everyone does, at once; what was opened before is never sealed.
func TestVerifyFull(t *testing.T) {
	l := newLab(t)
	image, mnt := lyingImage(t), t.TempDir()
	words := []string{"the image is refused", "the table of contents differs from the tar", `"etc/hosts": uid 65534 in the tar, 0 in the table of contents`}
	file := filepath.Join(t.TempDir(), "image.erofs")
	l.fails(1, words, "pexfs", "image", "build", "-q", "--verify", "full", "-o", file, image)
	nothingIn(t, filepath.Dir(file))
	l.do("pexfs", "image", "build", "-q", "-o", file, image)
	l.fails(1, []string{"the images differ", `"/etc/hosts": owner 0:65534 in the file, 65534:65534 in the layers`}, "pexfs", "image", "check", "-q", file, "--against", image)

	dir := l.mount("--no-fill", image)
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "etc/hosts"), &st); err != nil || st.Uid != 0 {
		t.Errorf("what nobody has verified yet: uid %d, %v", st.Uid, err)
	}
	l.fails(1, words, "pexfs", "mount", "--verify", "full", image, mnt)
	l.fails(1, words, "pexfs", "mount", image, mnt)
	l.fails(1, words, "pexfs", "wait", "-q", dir)
	l.umount(dir)
	if out := l.do("pexfs", "ls"); strings.Contains(out, "sealed") {
		t.Errorf("a refused image is sealed: %s", out)
	}
	// the verdict outlives the daemon, and needs no layer
	l.do("pexfs", "daemon", "stop")
	if err := os.RemoveAll(filepath.Join(strings.TrimPrefix(image, "oci:"), "blobs/sha256", layerDigest(t, image, 1))); err != nil {
		t.Fatal(err)
	}
	l.fails(1, words, "pexfs", "mount", image, mnt)

	right := fixtureImage(t, formStargz)
	l.do("pexfs", "mount", "--verify", "full", right, mnt)
	defer l.umount(mnt)
	l.seal(right)
}

// TestBounds has layers of more entries, and more bytes, than are allowed, in all forms.
func TestBounds(t *testing.T) {
	l := newLab(t)
	mnt := t.TempDir()
	for _, f := range forms() {
		t.Run(string(f), func(t *testing.T) {
			l, image := l.in(t), fixtureImage(t, f)
			l.fails(1, []string{"layer sha256:", "262144"}, "pexfs", "mount", "--max-size", "256k", image, mnt)
			l.fails(1, []string{"layer sha256:", "more than 3 entries"}, "pexfs", "mount", "--max-entries", "3", image, mnt)
			nothingIn(t, filepath.Join(l.cache, "tmp"))
			l.mount("--max-size", "4m", "--max-entries", "100", image)
		})
	}
	t.Run("a bomb", func(t *testing.T) {
		// 64 MiB of zeros that are 64 KiB as gzip
		l, dir := l.in(t), filepath.Join(t.TempDir(), "bomb")
		layer := []entry{{name: "zeros", kind: '0', mode: 0o644, content: content{size: 64 << 20}}}
		if err := writeImage(dir, formGzip, packing{}, tars([][]entry{layer})); err != nil {
			t.Fatal(err)
		}
		l.fails(1, []string{"layer sha256:", "33554432"}, "pexfs", "image", "build", "-q", "--max-size", "32m", "-o", filepath.Join(t.TempDir(), "image.erofs"), "oci:"+dir)
	})
	for _, bad := range []string{"0", "-1", "1x", "99999999999t", ""} {
		l.fails(1, []string{"--max-size"}, "pexfs", "mount", "--max-size", bad, "oci:x", mnt)
	}
	l.fails(1, []string{"--verify", "want chain or full"}, "pexfs", "mount", "--verify", "some", "oci:x", mnt)
}
