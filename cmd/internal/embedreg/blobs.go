package embedreg

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// parseDigest checks a digest before it becomes a part of a path.
func parseDigest(s string) (v1.Hash, error) {
	h, err := v1.NewHash(s)
	if err != nil {
		return v1.Hash{}, fail(http.StatusBadRequest, "DIGEST_INVALID", "%.200q is no digest", s)
	}
	return h, nil
}

func (r *Registry) blobPath(h v1.Hash) string { return r.path("blobs", h.Algorithm, h.Hex) }

func (r *Registry) serveBlob(w http.ResponseWriter, req *http.Request, digest string) error {
	h, err := parseDigest(digest)
	if err != nil {
		return err
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		return unsupported(req)
	}
	f, err := os.Open(r.blobPath(h))
	if errors.Is(err, fs.ErrNotExist) {
		return fail(http.StatusNotFound, "BLOB_UNKNOWN", "no blob %s", h)
	} else if err != nil {
		return err
	}
	defer f.Close()
	if req.Header.Get("Range") != "" {
		r.ranges.Add(1)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", h.String())
	w.Header().Set("ETag", `"`+h.String()+`"`)
	http.ServeContent(w, req, "", time.Time{}, f)
	return nil
}

var idRE = regexp.MustCompile(`^[0-9a-f]{32}$`)

// serveUpload is how blobs come: POST starts an upload (or is all of it), PATCH adds to it, PUT ends it.
func (r *Registry) serveUpload(w http.ResponseWriter, req *http.Request, repo, id string) error {
	q := req.URL.Query()
	if id == "" {
		if req.Method != http.MethodPost {
			return unsupported(req)
		}
		if h, err := v1.NewHash(q.Get("mount")); err == nil && r.hasBlob(h) {
			return created(w, repo, h)
		}
		id, err := r.startUpload()
		if err != nil {
			return err
		}
		if q.Get("digest") != "" {
			return r.addToUpload(id, func(f *os.File) error { return r.finish(w, req, f, repo, q.Get("digest")) })
		}
		return r.uploadState(w, repo, id, 0, http.StatusAccepted)
	}
	if !idRE.MatchString(id) {
		return fail(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "no such upload")
	}
	return r.addToUpload(id, func(f *os.File) error {
		size, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		switch req.Method {
		case http.MethodGet:
			return r.uploadState(w, repo, id, size, http.StatusNoContent)
		case http.MethodPatch:
			var first, last int64
			if cr := req.Header.Get("Content-Range"); cr != "" {
				if _, err := fmt.Sscanf(cr, "%d-%d", &first, &last); err != nil || first != size {
					return fail(http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", "the next byte is %d", size)
				}
			}
			n, err := io.Copy(f, req.Body)
			if err != nil {
				return err
			}
			return r.uploadState(w, repo, id, size+n, http.StatusAccepted)
		case http.MethodPut:
			return r.finish(w, req, f, repo, q.Get("digest"))
		case http.MethodDelete:
			w.WriteHeader(http.StatusNoContent)
			return os.Remove(f.Name())
		}
		return unsupported(req)
	})
}

func (r *Registry) startUpload() (string, error) {
	var b [16]byte
	_, _ = rand.Read(b[:]) // documented never to fail
	id := hex.EncodeToString(b[:])
	f, err := os.OpenFile(r.path("uploads", id), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if err != nil {
		return "", err
	}
	return id, f.Close()
}

// addToUpload calls f with an upload's file, one at a time.
func (r *Registry) addToUpload(id string, f func(*os.File) error) (err error) {
	r.mu.Lock()
	busy := r.uploads[id]
	r.uploads[id] = true
	r.mu.Unlock()
	if busy {
		return fail(http.StatusConflict, "BLOB_UPLOAD_INVALID", "another request is writing to this upload")
	}
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.uploads, id)
	}()
	file, err := os.OpenFile(r.path("uploads", id), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fail(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "no such upload")
	} else if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return f(file)
}

func (r *Registry) uploadState(w http.ResponseWriter, repo, id string, size int64, status int) error {
	w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/"+id)
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(size-1, 0)))
	w.Header().Set("Docker-Upload-UUID", id)
	w.WriteHeader(status)
	return nil
}

// finish adds the body to an upload and makes it a blob, if it has the digest. It ends the upload either way.
func (r *Registry) finish(w http.ResponseWriter, req *http.Request, f *os.File, repo, digest string) error {
	done := false
	defer func() {
		if !done {
			_ = os.Remove(f.Name()) // the next start would
		}
	}()
	h, err := parseDigest(digest)
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	if _, err := io.Copy(f, req.Body); err != nil {
		return err
	}
	hasher, err := v1.Hasher(h.Algorithm)
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.Copy(hasher, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(hasher.Sum(nil)); got != h.Hex {
		return fail(http.StatusBadRequest, "DIGEST_INVALID", "the upload is %s:%s, not %s", h.Algorithm, got, h)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := rename(f.Name(), r.blobPath(h)); err != nil {
		return err
	}
	done = true
	return created(w, repo, h)
}

func created(w http.ResponseWriter, repo string, h v1.Hash) error {
	w.Header().Set("Location", "/v2/"+repo+"/blobs/"+h.String())
	w.Header().Set("Docker-Content-Digest", h.String())
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (r *Registry) hasBlob(h v1.Hash) bool {
	_, err := os.Stat(r.blobPath(h))
	return err == nil
}

// write writes a file that is there as a whole or not at all, and survives a crash once write has returned.
func (r *Registry) write(name string, content []byte) error {
	f, err := os.CreateTemp(r.path("uploads"), "write-")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// rename puts a file at its place, whose folder it makes.
func rename(from, to string) error {
	dir := filepath.Dir(to)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
