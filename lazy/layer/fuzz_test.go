package layer

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"

	"github.com/pexfs/pex/lazy/blob/blobtest"
	"github.com/pexfs/pex/lazy/tree"
)

// FuzzZstdTOC feeds blobs and positions of TOCs in them. Their checksums are made right, in one of the two forms of annotations. What is
// read lies in the blob, and what is emitted of it has its digest.
func FuzzZstdTOC(f *testing.F) {
	src := makeTar(f, reg("a", text(700, 1)), reg("b", "b"), reg("hole", strings.Repeat("\x00", 9000)))
	for _, form := range []func(testing.TB, []byte) ([]byte, v1.Descriptor, v1.Hash){
		zstdChunked(estargz.WithChunkSize(300)), zstdChunked(estargz.WithChunkSize(300), estargz.WithMinChunkSize(1000)), containersImage,
	} {
		b, d, _ := form(f, src)
		p := d.Annotations[imagePosition]
		f.Add(b, p+d.Annotations[estargzPosition], p == "")
	}
	f.Add([]byte{}, "9223372036854775807:9223372036854775807:9223372036854775807:1", false)
	f.Add(skippable(zst(f, []byte(`{"entries":[]}`))), "8:27:14:1", true)
	f.Fuzz(func(t *testing.T, b []byte, position string, ofEstargz bool) {
		d := descriptor(b)
		sum := digestOf(nil)
		if off, n, _, err := parsePosition(position); err == nil && off <= int64(len(b)) && n <= int64(len(b))-off {
			sum = digestOf(b[off:][:n])
		}
		d.Annotations = map[string]string{imagePosition: position, imageChecksum: sum.String()}
		if ofEstargz {
			d.Annotations = map[string]string{estargzPosition: position, estargzChecksum: sum.String()}
		}
		ix, err := ReadTOC(t.Context(), blobtest.Bytes(b), d, Limits{})
		if err != nil {
			return
		}
		checkTOC(t, ix, int64(len(b)))
		roundTrip(t, ix)
		checkChunks(t, ix, b)
	})
}

// checkChunks reads the chunks of an index from a blob, up to the first that can't be read. They are as their digests say.
func checkChunks(t *testing.T, ix *Index, b []byte) {
	t.Helper()
	chunks, _ := inOrder(ix)
	size := int64(0)
	for i, c := range chunks {
		if size += c.Size; size > 4<<20 {
			chunks = chunks[:i]
			break
		}
	}
	next := 0
	err := ReadChunks(t.Context(), ix.Format, bytes.NewReader(b), 0, chunks, func(i int, p []byte) error {
		if i != next || int64(len(p)) != chunks[i].Size || sha256.Sum256(p) != chunks[i].Digest {
			t.Fatalf("chunk %d, %d bytes, comes for %d: %+v", i, len(p), next, chunks[i])
		}
		next++
		return nil
	})
	if err == nil && next != len(chunks) {
		t.Errorf("%d of %d chunks", next, len(chunks))
	}
}

// FuzzVerify holds TOCs against tars, each of any bytes, that are one layer. What passes is what a reader of the tar gets, but for
// the losses that Verify's comment lists.
func FuzzVerify(f *testing.F) {
	src := makeTar(f, reg("a", text(700, 1)), member{tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "a", ModTime: time.Unix(5, 6), Uid: 3, Mode: 0o777}, ""})
	// the tar is one gzip member, in which a's content begins behind a header
	chunk := fmt.Sprintf(`"offset":0,"innerOffset":512,"chunkDigest":%q`, digestOf([]byte(text(700, 1))))
	a := `{"name":"a","type":"reg","size":700,"mode":420,"modtime":"2001-09-09T01:46:40Z",` + chunk + `}`
	l := `{"name":"l","type":"symlink","linkName":"a","mode":511,"modtime":"1970-01-01T00:00:05Z","uid":3}`
	for _, entries := range []string{a + "," + l, a, l + "," + a, a + "," + l + `,{"name":".wh.x","type":"reg"}`, ""} {
		f.Add(src, []byte(`{"version":1,"entries":[`+entries+`]}`))
	}
	f.Add(makeTar(f), []byte(`{"entries":[]}`))
	footer := estargz.CreateGzipFooter(fmt.Appendf(nil, "SG\x16\x00%016xSTARGZ", 0)) // with the offset from its byte 16 on
	f.Fuzz(func(t *testing.T, src, toc []byte) {
		b := gzLevel(t, src, gzip.NoCompression) // the quickest
		copy(footer[16:], fmt.Sprintf("%016x", len(b)))
		b = append(append(b, gzLevel(t, makeTar(t, reg(tocName, string(toc))), gzip.NoCompression)...), footer...)
		ix, err := tocOf(t, b, digestOf(toc).String())
		if err != nil {
			return
		}
		// the layer's tar is the whole of what the blob inflates to
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		diffID := digestOf(plain)
		lim := Limits{MaxSize: 4 << 20, MaxEntries: 1000}
		verr := Verify(bytes.NewReader(b), descriptor(b), diffID, ix, lim)
		s, serr := stream(t, b, diffID, lim)
		if verr != nil {
			return
		}
		if serr != nil {
			t.Fatalf("the tar can't be read: %v", serr)
		}
		if len(s.Entries) != len(ix.Entries) {
			t.Fatalf("%d entries in the tar, %d in the table of contents", len(s.Entries), len(ix.Entries))
		}
		files, _ := contents(t, ix, b) // those whose chunks are elsewhere are missing
		for i, e := range s.Entries {
			o := ix.Entries[i]
			if cleaned(e.Name) != cleaned(o.Name) || e.Type != o.Type || e.Mode != o.Mode || e.UID != o.UID || e.GID != o.GID || e.Size != o.Size || e.Major != o.Major || e.Minor != o.Minor {
				t.Fatalf("entry %d: %+v in the tar, %+v in the table of contents", i, e, o)
			}
			if e.Type == tree.Symlink && e.Linkname != o.Linkname || e.Type == tree.HardLink && cleaned(e.Linkname) != cleaned(o.Linkname) {
				t.Fatalf("entry %d: %+v in the tar, %+v in the table of contents", i, e, o)
			}
			for _, x := range o.Xattrs {
				if !slices.ContainsFunc(e.Xattrs, func(y tree.Xattr) bool { return x.Name == y.Name && bytes.Equal(x.Value, y.Value) }) {
					t.Fatalf("entry %d: attribute %q is not in the tar", i, x.Name)
				}
			}
			if e.Size > 0 && files[o.Content] != "" && files[o.Content] != s.content(e) {
				t.Fatalf("entry %d: other bytes", i)
			}
		}
	})
}
