package lazy_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/pexfs/pex/erofs"
	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/layer"
	"github.com/pexfs/pex/lazy/ref"
	"github.com/pexfs/pex/lazy/store"
)

// worker has a folder of its own for one try at a time.
type worker struct{ dir string }

// folderError says that a cache folder is refused as a whole.
type folderError struct{ error }

// withCache calls f with a cache in the worker's folder, and sees to it that nothing is left half done.
func (w *worker) withCache(f func(*lazy.Cache) (outcome, error)) (out outcome, err error) {
	st, err := store.Open(w.dir)
	if err == nil {
		err = st.Lock()
	}
	if err != nil {
		return refused, &folderError{err}
	}
	c := lazy.NewCache(st, lazy.Options{Limits: layer.Limits{MaxSize: 64 << 20}})
	defer func() { err = errors.Join(err, c.Close(), w.leftOver(), st.Close()) }()
	return f(c)
}

// leftOver looks for files of work that isn't under way.
func (w *worker) leftOver() error {
	left, err := os.ReadDir(filepath.Join(w.dir, "tmp"))
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left behind in tmp: %v", left)
	}
	return err
}

// opening says how an image is opened and read.
type opening struct {
	repo    lazy.Repo
	verify  bool
	check   bool               // its metadata by erofs.Check
	lazy    bool               // don't fill it
	content func([]byte) error // judges contents; may be nil
}

func (o opening) open(ctx context.Context, c *lazy.Cache) (*lazy.Image, error) {
	n, err := ref.Parse("localhost/tiny:1")
	if err != nil {
		return nil, err
	}
	opened, err := c.Open(ctx, n, o.repo, lazy.OpenOptions{Platform: ref.Platform{OS: "linux", Architecture: "amd64"}, Pull: lazy.PullAlways, Verify: o.verify})
	if err != nil {
		return nil, err
	}
	return opened.Image, nil
}

// seen is what became of an opening: of a refused one only why.
type seen struct {
	outcome outcome
	listing listing
	root    string // of the Merkle tree
	why     error
}

// run opens an image and reads it in every way. An error says that the image contradicts itself.
func (o opening) run(ctx context.Context, c *lazy.Cache) (seen, error) {
	im, err := o.open(ctx, c)
	if err != nil {
		return seen{outcome: refused, why: err}, ctx.Err()
	}
	l, err := o.list(ctx, im, true)
	if err != nil {
		return seen{}, fmt.Errorf("reading: %w", err)
	}
	if o.lazy {
		if l.unreadable() {
			return seen{outcome: unreadable, listing: l}, nil
		}
		return seen{outcome: right, listing: l}, nil
	}
	fill, cancel := context.WithTimeout(ctx, tryTimeout/2)
	defer cancel()
	if err := im.Fill(fill); err != nil {
		if fill.Err() != nil {
			return seen{}, fmt.Errorf("filling goes on for ever: %w", err)
		}
		if im.State() == store.Sealed {
			return seen{}, fmt.Errorf("sealed in spite of %w", err)
		}
		return seen{outcome: unreadable, listing: l, why: err}, nil
	}
	if l.unreadable() {
		return seen{}, errors.New("what could not be read was filled")
	}
	again, err := o.list(ctx, im, false)
	if err != nil {
		return seen{}, fmt.Errorf("reading what was filled: %w", err)
	}
	return seen{right, l, im.Root(), nil}, again.differs(l)
}

// needing reads an image, fetching what it needs unless im is nil.
type needing struct {
	ctx context.Context
	im  *lazy.Image
	v   *store.View
}

func (r needing) ReadAt(p []byte, off int64) (int, error) {
	if r.im != nil {
		if err := r.im.Need(r.ctx, off, int64(len(p))); err != nil {
			return 0, err
		}
	}
	if !r.v.Has(off, int64(len(p))) {
		return 0, errors.New("a block that was needed is not there")
	}
	return r.v.File().ReadAt(p, off)
}

// list reads an image whole, with Need, or only what is there.
func (o opening) list(ctx context.Context, im *lazy.Image, need bool) (listing, error) {
	v, err := store.OpenView(im.Dir())
	if err != nil {
		return nil, err
	}
	defer v.Close()
	r := needing{ctx: ctx, v: v}
	if need {
		r.im = im
	}
	e, err := erofs.Open(r, v.Info.Size)
	if err != nil {
		return nil, err
	}
	if need && o.check { // once is enough
		if err := erofs.Check(r, v.Info.Size); err != nil {
			return nil, err
		}
	}
	all := make(listing)
	type visit struct {
		path string
		nid  uint64
	}
	for todo := []visit{{"/", e.Super().RootNid}}; len(todo) > 0; todo = todo[1:] {
		path, l := todo[0].path, listed{}
		if l.Inode, err = e.Inode(todo[0].nid); err != nil {
			return nil, err
		}
		if l.Xattrs, err = e.Xattrs(l.Inode); err != nil {
			return nil, err
		}
		switch {
		case l.Inode.IsSymlink():
			target, err := e.Readlink(l.Inode)
			if err != nil {
				return nil, err
			}
			l.Target = string(target)
		case l.Inode.IsDir():
			err := e.ReadDir(l.Inode, 0, func(d erofs.Dirent) bool {
				if n := string(d.Name); n != "." && n != ".." {
					todo = append(todo, visit{filepath.Join(path, n), d.Nid})
				}
				return true
			})
			if err != nil {
				return nil, err
			}
		case l.Inode.IsRegular() && l.Inode.Size > 0:
			off, err := e.DataOff(l.Inode)
			if err != nil {
				return nil, err
			}
			b := make([]byte, l.Inode.Size)
			if _, err := r.ReadAt(b, off); err != nil {
				if ctx.Err() != nil {
					return nil, err
				}
				l.Err = err.Error()
				break
			}
			h := sha256.Sum256(b)
			l.Content = hex.EncodeToString(h[:])
			if o.content == nil {
				break
			}
			if err := o.content(b); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
		}
		all[path] = l
	}
	return all, nil
}

// listing is what an image shows, by path.
type listing map[string]listed

// listed is all of an inode, and the digest of its content, which is empty where that could not be read.
type listed struct {
	Inode   erofs.Inode
	Xattrs  []erofs.Xattr
	Target  string
	Content string
	Err     string // why the content is unreadable
}

// differs compares what could be read of an image with what there should be.
func (l listing) differs(want listing) error {
	got := maps.Clone(l)
	for p, e := range got {
		if e.Err != "" {
			e.Content, e.Err = want[p].Content, ""
			got[p] = e
		}
	}
	for p, e := range want {
		if g, ok := got[p]; !ok || !reflect.DeepEqual(e, g) {
			return fmt.Errorf("%s is %+v, want %+v", p, g, e)
		}
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d names, want %d", len(got), len(want))
	}
	return nil
}

// unreadable tells whether contents are missing.
func (l listing) unreadable() bool {
	for _, e := range l {
		if e.Err != "" {
			return true
		}
	}
	return false
}

// summary is what is the same wherever an image's inodes and contents lie.
func (l listing) summary() map[string]string {
	s := make(map[string]string)
	for p, e := range l {
		i := e.Inode
		s[p] = fmt.Sprint(i.Mode, i.UID, i.GID, i.Nlink, i.Size, i.Mtime, i.MtimeNsec, i.Rdev, e.Xattrs, e.Target, e.Content)
	}
	return s
}

// truth is an image as it should be.
type truth struct {
	repo *imageRepo
	list listing
	root string // of the Merkle tree
}

// readTruth opens an image that is right.
func readTruth(t testing.TB, r *imageRepo) *truth {
	t.Helper()
	w := &worker{filepath.Join(t.TempDir(), "cache")}
	var s seen
	_, err := w.withCache(func(c *lazy.Cache) (outcome, error) {
		var err error
		s, err = opening{repo: r, check: true}.run(t.Context(), c)
		return s.outcome, err
	})
	if err != nil || s.outcome != right || s.root == "" {
		t.Fatalf("the image isn't right: %+v, %v", s, err)
	}
	return &truth{r, s.listing, s.root}
}

// is compares what was seen with the truth.
func (g *truth) is(s seen) error {
	if s.outcome == refused {
		return nil
	}
	if s.root != "" && s.root != g.root {
		return fmt.Errorf("root %s, want %s", s.root, g.root)
	}
	return s.listing.differs(g.list)
}

// holds sees to it that the image opens right in a cache, whatever happened there before, and is sealed.
func (g *truth) holds(ctx context.Context, c *lazy.Cache) error {
	s, err := opening{repo: g.repo}.run(ctx, c)
	if err == nil && s.outcome != right {
		err = fmt.Errorf("%w; it can't be read", s.why)
	}
	return errors.Join(err, g.is(s))
}

// keptNothing sees to it that an opening that failed has left no image, and one that could not be read whole none that is sealed.
func keptNothing(c *lazy.Cache, out outcome) error {
	images, err := c.Store().Images()
	if err != nil || out == right {
		return err
	}
	var bad []string
	for _, i := range images {
		if out == refused || i.State != store.Lazy {
			bad = append(bad, fmt.Sprintf("%.12s, %s", i.Key, i.State))
		}
	}
	if bad != nil {
		return errors.New("kept: " + strings.Join(bad, "; "))
	}
	return nil
}
