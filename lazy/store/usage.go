package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Usage is what the folder takes on disk, in bytes of allocated blocks.
type Usage struct {
	Images   map[Key]int64 `json:"-"`
	Blobs    int64         `json:"blobs"`    // manifests and configs, and what refers to them
	Layers   int64         `json:"layers"`   // verdicts, and what is known of layers while images are made of them
	Profiles int64         `json:"profiles"` // of programs
	Tmp      int64         `json:"tmp"`      // work under way, and what was removed and is still read
	Other    int64         `json:"other"`    // kernels, the daemon's log
	Total    int64         `json:"total"`
}

// Usage adds up what is on disk. What is changed meanwhile may be counted or not.
func (s *Store) Usage() (Usage, error) {
	u := Usage{Images: make(map[Key]int64), Tmp: s.scratched()}
	u.Total = u.Tmp
	top, err := os.ReadDir(s.dir)
	if err != nil {
		return u, fmt.Errorf("measuring cache folder: %w", err)
	}
	for _, d := range top {
		to := map[string]*int64{"blobs": &u.Blobs, "refs": &u.Blobs, "records": &u.Blobs, "layers": &u.Layers, "profiles": &u.Profiles, "tmp": &u.Tmp}[d.Name()]
		if to == nil {
			to = &u.Other
		}
		name := filepath.Join(s.dir, d.Name())
		if d.Name() == "images" {
			images, err := os.ReadDir(name)
			if err != nil {
				return u, fmt.Errorf("measuring cache folder: %w", err)
			}
			for _, im := range images {
				n, err := allocated(filepath.Join(name, im.Name()), nil)
				if err != nil {
					return u, fmt.Errorf("measuring cache folder: %w", err)
				}
				u.Images[Key(im.Name())] = n
				u.Total += n
			}
			continue
		}
		n, err := allocated(name, nil)
		if err != nil {
			return u, fmt.Errorf("measuring cache folder: %w", err)
		}
		*to += n
		u.Total += n
	}
	return u, nil
}

// Removed is something that was removed, or would be.
type Removed struct {
	What  string `json:"what"` // image, reference, record, blob, layer
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"` // on disk
}

// Collect removes what refers to images that are gone, and manifests and configs that nothing refers to.
// With dry it only tells. No image is being opened meanwhile.
func (s *Store) Collect(dry bool) (all []Removed, err error) {
	drop := func(what, name, path string) error {
		n, err := allocated(path, nil)
		if err == nil && !dry {
			err = os.Remove(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing %s: %w", path, err)
		}
		all = append(all, Removed{what, name, n})
		return nil
	}
	used := make(map[string]bool) // blobs, by digest in hex
	for _, id := range s.names("records") {
		rec, err := s.Record(id)
		if err == nil {
			_, err = os.Lstat(s.imageDir(rec.Image))
		}
		if err == nil {
			used[id], used[rec.Config] = true, true
			continue
		}
		if err := drop("record", "sha256:"+id, filepath.Join(s.dir, "records", id+".json")); err != nil {
			return all, err
		}
	}
	for _, id := range s.names("refs") {
		var r Ref
		path := filepath.Join(s.dir, "refs", id+".json")
		if readJSON(path, &r) == nil && used[r.Manifest] {
			continue
		}
		if err := drop("reference", r.Ref, path); err != nil {
			return all, err
		}
	}
	infos, err := s.Images()
	if err != nil {
		return all, err
	}
	for _, i := range infos { // fsck makes an image anew from it
		used[i.Manifest] = true
	}
	for _, id := range s.names("blobs") {
		if used[id] {
			continue
		}
		if err := drop("blob", "sha256:"+id, filepath.Join(s.dir, "blobs", id)); err != nil {
			return all, err
		}
	}
	return all, nil
}

// names lists the files of a folder whose names are a SHA-256, by that.
func (s *Store) names(dir string) (all []string) {
	files, _ := os.ReadDir(filepath.Join(s.dir, dir))
	for _, f := range files {
		if id := strings.TrimSuffix(f.Name(), ".json"); isHex(id) {
			all = append(all, id)
		}
	}
	slices.Sort(all)
	return all
}
