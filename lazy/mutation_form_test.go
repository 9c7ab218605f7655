package lazy_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// sha gives a digest as descriptors have it.
func sha(b []byte) v1.Hash {
	h := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h[:])}
}

// layerForm is a layer in one of the forms that layers have.
type layerForm struct {
	blob        []byte
	mediaType   types.MediaType
	annotations map[string]string
	diffID      v1.Hash
	toc         []byte // JSON of its TOC, or nil
}

// forms are functions from a tar to a layer, by their names.
func forms() map[string]func(testing.TB, []byte) layerForm {
	return map[string]func(testing.TB, []byte) layerForm{
		"tar": func(_ testing.TB, raw []byte) layerForm {
			return layerForm{blob: raw, mediaType: types.OCIUncompressedLayer, diffID: sha(raw)}
		},
		"gzip": func(t testing.TB, raw []byte) layerForm {
			return layerForm{blob: gzipOf(t, raw), mediaType: types.OCILayer, diffID: sha(raw)}
		},
		"zstd": func(t testing.TB, raw []byte) layerForm {
			return layerForm{blob: zstdOf(t, raw), mediaType: types.OCILayerZStd, diffID: sha(raw)}
		},
		"estargz": func(t testing.TB, raw []byte) layerForm { return stargz(t, raw, estargz.WithChunkSize(1500)) },
		"estargz, chunks within members": func(t testing.TB, raw []byte) layerForm {
			return stargz(t, raw, estargz.WithChunkSize(1500), estargz.WithMinChunkSize(4000))
		},
		"zstd:chunked": zstdChunked,
		"zstd:chunked with tar-split": func(t testing.TB, raw []byte) layerForm {
			l := zstdChunked(t, raw)
			at := len(l.blob) - zstdFooter
			split := zstdOf(t, bytes.Repeat([]byte(`{"type":2,"payload":"AAAA","position":0}`+"\n"), 20))
			frame := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, 0x184D2A50), uint32(len(split)))
			l.blob = slices.Concat(l.blob[:at], frame, split, l.blob[at:])
			l.annotations["io.github.containers.zstd-chunked.tarsplit-position"] = fmt.Sprintf("%d:%d:820", at+len(frame), len(split))
			l.annotations["io.github.containers.zstd-chunked.tarsplit-checksum"] = sha(split).String()
			return l
		},
	}
}

func zstdChunked(t testing.TB, raw []byte) layerForm {
	a := make(map[string]string)
	l := stargz(t, raw, estargz.WithChunkSize(1500), estargz.WithCompression(struct {
		*zstdchunked.Compressor
		*zstdchunked.Decompressor
	}{&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: a}, new(zstdchunked.Decompressor)}))
	l.mediaType, l.annotations = types.OCILayerZStd, a
	l.toc = zstdTOC(t, l)
	return l
}

// zstdFooter is the size of a zstd:chunked blob's footer with its frame's header.
const zstdFooter = 8 + zstdchunked.FooterSize

// part is a part of a blob.
type part struct {
	name     string // begins with a comma; empty: it has the contents
	from, to int
}

// parts are the parts of a layer's blob: contents, TOC, what follows it, and footer.
func (l layerForm) parts(t testing.TB) []part {
	t.Helper()
	n := len(l.blob)
	if l.toc == nil {
		return []part{{to: n}}
	}
	if l.mediaType == types.OCILayerZStd {
		off, size, _ := zstdPosition(t, l)
		toc, end, foot := int(off)-8, int(off+size), n-zstdFooter
		all := []part{{to: toc}, {", its TOC", toc, end}, {", its footer", foot, n}}
		if end < foot {
			all = append(all, part{", its tar-split", end, foot})
		}
		return all
	}
	off, ok := tocOffset(l.blob)
	if !ok {
		t.Fatal("no footer")
	}
	return []part{{to: int(off)}, {", its TOC", int(off), n - estargz.FooterSize}, {", its footer", n - estargz.FooterSize, n}}
}

func gzipOf(t testing.TB, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstdOf(t testing.TB, raw []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	return z.EncodeAll(raw, nil)
}

func stargz(t testing.TB, raw []byte, o ...estargz.Option) layerForm {
	t.Helper()
	bl, err := estargz.Build(io.NewSectionReader(bytes.NewReader(raw), 0, int64(len(raw))), o...)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(bl)
	if err != nil {
		t.Fatal(err)
	}
	if err := bl.Close(); err != nil {
		t.Fatal(err)
	}
	l := layerForm{blob: b, mediaType: types.OCILayer, diffID: sha(nil)}
	l.diffID.Hex = bl.DiffID().Encoded()
	l.annotations = map[string]string{estargz.TOCJSONDigestAnnotation: bl.TOCDigest().String()}
	if off, ok := tocOffset(b); ok {
		l.toc = inflateTOC(b[off:])
	}
	return l
}

// tocOffset reads the footer of an eStargz blob.
func tocOffset(b []byte) (int64, bool) {
	_, off, _, err := new(estargz.GzipDecompressor).ParseFooter(b[max(0, len(b)-estargz.FooterSize):])
	return off, err == nil
}

func inflateTOC(b []byte) []byte {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil
	}
	z.Multistream(false)
	r := tar.NewReader(z)
	if _, err := r.Next(); err != nil {
		return nil
	}
	j, err := io.ReadAll(r)
	if err != nil {
		return nil
	}
	return j
}

// zstdPosition gives the place of a zstd:chunked TOC.
func zstdPosition(t testing.TB, l layerForm) (off, size, plain int64) {
	t.Helper()
	if _, err := fmt.Sscanf(l.annotations[zstdchunked.ManifestPositionAnnotation], "%d:%d:%d:1", &off, &size, &plain); err != nil {
		t.Fatal(err)
	}
	return off, size, plain
}

func zstdTOC(t testing.TB, l layerForm) []byte {
	t.Helper()
	off, size, _ := zstdPosition(t, l)
	b, ok := inflated(l.blob[off:][:size])
	if !ok {
		t.Fatal("the TOC doesn't inflate")
	}
	return b
}

// withTOC is the layer with another TOC that its manifest vouches for.
func (l layerForm) withTOC(t testing.TB, toc []byte) layerForm {
	t.Helper()
	l.annotations = maps.Clone(l.annotations)
	l.toc = toc
	if l.mediaType == types.OCILayerZStd {
		off, size, _ := zstdPosition(t, l)
		z := zstdOf(t, toc)
		b := bytes.Clone(l.blob[:off])
		binary.LittleEndian.PutUint32(b[off-4:], uint32(len(z)))
		l.blob = append(append(b, z...), l.blob[off+size:]...)
		l.annotations[zstdchunked.ManifestPositionAnnotation] = fmt.Sprintf("%d:%d:%d:1", off, len(z), len(toc))
		l.annotations[zstdchunked.ManifestChecksumAnnotation] = sha(z).String()
	} else {
		off, ok := tocOffset(l.blob)
		if !ok {
			t.Fatal("no footer")
		}
		var tb bytes.Buffer
		w := tar.NewWriter(&tb)
		if err := w.WriteHeader(&tar.Header{Name: estargz.TOCTarName, Typeflag: tar.TypeReg, Size: int64(len(toc))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(toc); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		footer := l.blob[len(l.blob)-estargz.FooterSize:]
		l.blob = append(append(bytes.Clone(l.blob[:off]), gzipOf(t, tb.Bytes())...), footer...)
		l.annotations[estargz.TOCJSONDigestAnnotation] = sha(toc).String()
	}
	return l.withDiffID()
}

// withDiffID makes the diffID right, if the blob is of any sense.
func (l layerForm) withDiffID() layerForm {
	if b, ok := inflated(l.blob); ok {
		l.diffID = sha(b)
	}
	return l
}

// inflated undoes any compression, as far as a megabyte.
func inflated(b []byte) ([]byte, bool) {
	const most = 1 << 20
	switch {
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, false
		}
		out, err := io.ReadAll(io.LimitReader(z, most))
		return out, err == nil && len(out) < most
	case len(b) >= 4 && (binary.LittleEndian.Uint32(b) == 0xFD2FB528 || binary.LittleEndian.Uint32(b)>>4 == 0x184D2A5):
		z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
		if err != nil {
			return nil, false
		}
		defer z.Close()
		out, err := z.DecodeAll(b, nil)
		return out, err == nil && len(out) < most
	}
	return b, len(b) < most
}
