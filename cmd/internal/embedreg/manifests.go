package embedreg

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pexfs/pex/lazy/ref"
)

// maxManifest is the largest manifest taken, in bytes.
const maxManifest = 8 << 20

func (r *Registry) manifestPath(repo string, h v1.Hash) string {
	return r.path("repositories", repo, "_manifests", h.Algorithm, h.Hex)
}

func (r *Registry) tagPath(repo, tag string) string {
	return r.path("repositories", repo, "_tags", tag)
}

func (r *Registry) serveManifest(w http.ResponseWriter, req *http.Request, repo, id string) error {
	isTag := !strings.Contains(id, ":")
	var h v1.Hash
	if isTag {
		if !tagRE.MatchString(id) {
			return fail(http.StatusBadRequest, "TAG_INVALID", "%.200q is no tag", id)
		}
	} else {
		var err error
		if h, err = parseDigest(id); err != nil {
			return err
		}
	}
	if req.Method == http.MethodPut {
		return r.putManifest(w, req, repo, id, isTag)
	}
	if isTag {
		b, err := os.ReadFile(r.tagPath(repo, id))
		if err != nil {
			return unknownManifest(err, id)
		}
		if h, err = v1.NewHash(string(b)); err != nil {
			return err
		}
	}
	mediaType, err := os.ReadFile(r.manifestPath(repo, h))
	if err != nil {
		return unknownManifest(err, id)
	}
	switch req.Method {
	case http.MethodGet, http.MethodHead:
		f, err := os.Open(r.blobPath(h))
		if err != nil {
			return err
		}
		defer f.Close()
		w.Header().Set("Content-Type", string(mediaType))
		w.Header().Set("Docker-Content-Digest", h.String())
		http.ServeContent(w, req, "", time.Time{}, f)
		return nil
	case http.MethodDelete:
		name := r.manifestPath(repo, h)
		if isTag {
			name = r.tagPath(repo, id)
		}
		if err := os.Remove(name); err != nil {
			return unknownManifest(err, id)
		}
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	return unsupported(req)
}

func unknownManifest(err error, id string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fail(http.StatusNotFound, "MANIFEST_UNKNOWN", "no manifest %s", id)
	}
	return err
}

func (r *Registry) putManifest(w http.ResponseWriter, req *http.Request, repo, id string, isTag bool) error {
	body, err := io.ReadAll(io.LimitReader(req.Body, maxManifest+1))
	if err != nil {
		return err
	}
	if len(body) > maxManifest {
		return fail(http.StatusRequestEntityTooLarge, "MANIFEST_INVALID", "more than %d bytes", maxManifest)
	}
	kind, err := ref.Kind(body, types.MediaType(req.Header.Get("Content-Type")))
	if err != nil {
		return fail(http.StatusBadRequest, "MANIFEST_INVALID", "%v", err)
	}
	if err := r.checkParts(repo, kind, body); err != nil {
		return err
	}
	h, _, err := v1.SHA256(bytes.NewReader(body))
	if err != nil {
		return err
	}
	if !isTag {
		want, err := parseDigest(id)
		if err != nil {
			return err
		}
		if want != h {
			return fail(http.StatusBadRequest, "DIGEST_INVALID", "the manifest is %s, not %s", h, want)
		}
	}
	// The tag comes last: it never names what isn't there.
	if err := r.write(r.blobPath(h), body); err != nil {
		return err
	}
	if err := r.write(r.manifestPath(repo, h), []byte(kind)); err != nil {
		return err
	}
	if isTag {
		if err := r.write(r.tagPath(repo, id), []byte(h.String())); err != nil {
			return err
		}
	}
	w.Header().Set("Location", "/v2/"+repo+"/manifests/"+h.String())
	w.Header().Set("Docker-Content-Digest", h.String())
	w.WriteHeader(http.StatusCreated)
	return nil
}

// checkParts says whether everything a manifest or index refers to is there.
func (r *Registry) checkParts(repo string, kind types.MediaType, body []byte) error {
	var m struct {
		Config            *v1.Descriptor
		Layers, Manifests []v1.Descriptor
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return fail(http.StatusBadRequest, "MANIFEST_INVALID", "%v", err)
	}
	if kind.IsIndex() {
		for _, d := range m.Manifests {
			if _, err := os.Stat(r.manifestPath(repo, d.Digest)); err != nil {
				return fail(http.StatusNotFound, "MANIFEST_UNKNOWN", "no manifest %s", d.Digest)
			}
		}
		return nil
	}
	if m.Config != nil {
		m.Layers = append(m.Layers, *m.Config)
	}
	for _, d := range m.Layers {
		if d.MediaType.IsDistributable() && !r.hasBlob(d.Digest) {
			return fail(http.StatusNotFound, "MANIFEST_BLOB_UNKNOWN", "no blob %s", d.Digest)
		}
	}
	return nil
}

// serveTags lists tags in order, from the one after ?last= on, ?n= of them.
func (r *Registry) serveTags(w http.ResponseWriter, req *http.Request, repo string) error {
	if req.Method != http.MethodGet {
		return unsupported(req)
	}
	entries, err := os.ReadDir(filepath.Dir(r.tagPath(repo, "x")))
	if errors.Is(err, fs.ErrNotExist) {
		return fail(http.StatusNotFound, "NAME_UNKNOWN", "no repository %s", repo)
	} else if err != nil {
		return err
	}
	tags := make([]string, 0, len(entries))
	for _, e := range entries {
		tags = append(tags, e.Name())
	}
	slices.Sort(tags)
	q := req.URL.Query()
	if last := q.Get("last"); last != "" {
		i, found := slices.BinarySearch(tags, last)
		if found {
			i++
		}
		tags = tags[i:]
	}
	if s := q.Get("n"); s != "" {
		n, err := strconv.ParseUint(s, 10, 31)
		if err != nil {
			return fail(http.StatusBadRequest, "UNSUPPORTED", "%.20q is no number", s)
		}
		tags = tags[:min(len(tags), int(n))]
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{repo, tags})
}
