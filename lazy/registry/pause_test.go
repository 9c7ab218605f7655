package registry

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/pexfs/pex/lazy/blob"
	"github.com/pexfs/pex/lazy/blob/blobtest"
)

// TestPause has many ask a registry that wants to be left alone for a second: nobody asks before that is over, and then one goes first.
func TestPause(t *testing.T) {
	f := newFake(t)
	content := blobtest.Random(1000)
	d := f.addBlob(content)
	repo := open(t, f.host(), ":v1", authn.AuthConfig{})
	src := blob.Retry(repo.Blob(d), quick)
	if _, err := read(t, src, 0, 10); err != nil {
		t.Fatal(err)
	}
	var until atomic.Int64 // in ns since 1970
	var early, under, together atomic.Int64
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		now := time.Now().UnixNano()
		if until.CompareAndSwap(0, now+int64(time.Second)) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		if now < until.Load() {
			early.Add(1)
		}
		if n := under.Add(1); n > 1 && together.Load() == 0 {
			t.Error("the first one after the pause is not alone")
		}
		time.Sleep(20 * time.Millisecond) // time for others to come
		together.Add(1)
		under.Add(-1)
		return false
	}
	if _, err := repo.Blob(d).Fetch(t.Context(), 0, 10); err == nil || !strings.Contains(err.Error(), "429") {
		t.Fatalf("error %v", err)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if b, err := read(t, src, 5, 10); err != nil || string(b) != string(content[5:15]) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		})
	}
	wg.Wait()
	if n := early.Load(); n != 0 {
		t.Errorf("%d requests in the pause", n)
	}
}

// TestLongPause holds that one who asks for more than patience is named in the error, and isn't asked again by anyone.
func TestLongPause(t *testing.T) {
	f := newFake(t)
	d := f.addBlob(blobtest.Random(1000))
	repo := open(t, f.host(), ":v1", authn.AuthConfig{})
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Retry-After", "600")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	}
	src := blob.Retry(repo.Blob(d), quick)
	for i, want := range []string{"429", "to be left alone until"} {
		_, err := read(t, src, 0, 10)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), f.host()) {
			t.Errorf("error %v, want %q", err, want)
		}
		if n := len(f.log()); n != 1-i {
			t.Errorf("%d requests", n)
		}
	}
}

// TestRenewedOnce has many read through a link that has expired.
func TestRenewedOnce(t *testing.T) {
	content := blobtest.Random(10_000)
	var f *fake
	var links atomic.Int64
	other := newFake(t)
	od := other.addBlob(content)
	other.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("link") != "" && r.URL.Query().Get("link") < "2" {
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	}
	f = newFake(t)
	d := f.addBlob(content)
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		time.Sleep(10 * time.Millisecond)
		link := "link=" + string(rune('0'+links.Add(1)))
		if links.Load() == 1 {
			link = ""
		}
		http.Redirect(w, r, other.URL+"/v2/app/blobs/"+od.Digest.String()+"?"+link, http.StatusTemporaryRedirect)
		return true
	}
	repo := open(t, f.host(), ":v1", authn.AuthConfig{})
	src := blob.Retry(repo.Blob(d), quick)
	if _, err := read(t, src, 0, 10); err != nil {
		t.Fatal(err)
	}
	valid := repo.Blob(d).(*source).places[repo.endpoints[0]]
	valid.mu.Lock()
	valid.location = other.URL + "/v2/app/blobs/" + od.Digest.String() + "?link=1" // expired
	valid.mu.Unlock()
	f.log()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			b, err := read(t, src, int64(i), 100)
			if err != nil || string(b) != string(content[i:i+100]) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		})
	}
	wg.Wait()
	if l := f.log(); len(l) != 1 {
		t.Errorf("%d asked for another link", len(l))
	}
}
