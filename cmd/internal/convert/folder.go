package convert

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/layout"
)

// maxIndex is the largest index.json that is added to, in bytes.
const maxIndex = 8 << 20

// folder is an OCI layout. It becomes one, or names another image, when commit renames index.json into place.
type folder struct{ dir, tag string }

func (t *folder) path(h v1.Hash) string { return filepath.Join(t.dir, "blobs", h.Algorithm, h.Hex) }

func (t *folder) blob(ctx context.Context, d v1.Descriptor, open opener) (bool, error) {
	if fi, err := os.Stat(t.path(d.Digest)); err == nil && fi.Mode().IsRegular() && fi.Size() == d.Size {
		return false, nil
	}
	rc, err := open(ctx)
	if err != nil {
		return false, err
	}
	h, err := v1.Hasher(d.Digest.Algorithm)
	if err != nil {
		return false, errors.Join(err, rc.Close())
	}
	err = write(t.path(d.Digest), func(f io.Writer) error {
		if _, err := io.Copy(io.MultiWriter(f, h), &ctxReader{ctx, rc}); err != nil {
			return err
		}
		if got := hex.EncodeToString(h.Sum(nil)); got != d.Digest.Hex {
			return fmt.Errorf("writing %s: %w: it is %s", d.Digest, blob.ErrDigestMismatch, got)
		}
		return nil
	})
	return true, errors.Join(err, rc.Close())
}

func (t *folder) manifest(ctx context.Context, d v1.Descriptor, body []byte) error {
	_, err := t.blob(ctx, d, bytesBlob(body))
	return err
}

func (t *folder) commit(ctx context.Context, d v1.Descriptor, body []byte) (err error) {
	if err := t.manifest(ctx, d, body); err != nil {
		return err
	}
	// Others may add images to the same layout.
	lock, err := os.Open(t.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", t.dir, err)
	}
	ix, err := t.index()
	if err != nil {
		return err
	}
	t.name(ix, d)
	b, err := json.Marshal(ix)
	if err != nil {
		return err
	}
	if err := t.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	return t.file("index.json", b)
}

// index reads index.json, if there is one.
func (t *folder) index() (*v1.IndexManifest, error) {
	ix := &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	f, err := os.Open(filepath.Join(t.dir, "index.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return ix, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIndex+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxIndex {
		return nil, fmt.Errorf("reading %s: it has more than %d bytes", f.Name(), maxIndex)
	}
	if err := json.Unmarshal(b, ix); err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.Name(), err)
	}
	return ix, nil
}

// name makes the tag mean d in ix. Without a tag d is listed once without a name.
func (t *folder) name(ix *v1.IndexManifest, d v1.Descriptor) {
	ix.Manifests = slices.DeleteFunc(ix.Manifests, func(old v1.Descriptor) bool {
		name := old.Annotations[layout.RefName]
		return name == t.tag && (t.tag != "" || old.Digest == d.Digest)
	})
	entry := v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Platform: d.Platform}
	if t.tag != "" {
		entry.Annotations = map[string]string{layout.RefName: t.tag}
	}
	ix.Manifests = append(ix.Manifests, entry)
}

// file writes a small file of the layout.
func (t *folder) file(name string, b []byte) error {
	return write(filepath.Join(t.dir, name), func(f io.Writer) error {
		_, err := f.Write(b)
		return err
	})
}

// write writes a file that is there as a whole or not at all, and survives a crash once write has returned.
func write(name string, fill func(io.Writer) error) error {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".partial-")
	if err != nil {
		return err
	}
	if err = fill(f); err == nil {
		err = errors.Join(f.Chmod(0o644), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
