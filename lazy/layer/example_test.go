package layer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pexfs/pex/lazy/blob/blobtest"
	"github.com/pexfs/pex/lazy/layer"
)

// An eStargz layer's entries are known after one range request, and a file after another one.
func ExampleReadTOC() {
	var src bytes.Buffer
	w := tar.NewWriter(&src)
	for _, name := range []string{"etc/hosts", "etc/motd"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(name))}); err != nil {
			log.Fatal(err)
		}
		if _, err := io.WriteString(w, name); err != nil {
			log.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		log.Fatal(err)
	}
	made, err := estargz.Build(io.NewSectionReader(bytes.NewReader(src.Bytes()), 0, int64(src.Len())))
	if err != nil {
		log.Fatal(err)
	}
	defer made.Close()
	b, err := io.ReadAll(made)
	if err != nil {
		log.Fatal(err)
	}

	ctx, blob := context.Background(), blobtest.Bytes(b)
	d := v1.Descriptor{Size: blob.Size(), Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: made.TOCDigest().String()}}
	ix, err := layer.ReadTOC(ctx, blob, d, layer.Limits{})
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range ix.Entries {
		c := ix.Contents[e.Content]
		chunks := ix.Chunks[c.FirstChunk:][:c.Chunks]
		start, end := chunks[0].Start, chunks[len(chunks)-1].End
		r, err := blob.Fetch(ctx, start, end-start)
		if err != nil {
			log.Fatal(err)
		}
		err = layer.ReadChunks(ctx, ix.Format, r, start, chunks, func(_ int, p []byte) error {
			fmt.Printf("%s %o: %s\n", e.Name, e.Mode, p)
			return nil
		})
		if err := r.Close(); err != nil {
			log.Fatal(err)
		}
		if err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// etc/hosts 644: etc/hosts
	// etc/motd 644: etc/motd
}
