package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Referrers lists what of one artifact type has a manifest as its subject (distribution specification v1.1, "Listing Referrers"), by
// the registry's API or, where it has none, by the tag that stands in for it. There may be none: that is no error. Only the first page
// of a list is read, of at most 8 MiB.
func (r *Repo) Referrers(ctx context.Context, subject v1.Hash, artifactType string) ([]v1.Descriptor, error) {
	what := "referrers of " + subject.String()
	if _, err := v1.NewHash(subject.String()); err != nil { // it becomes a part of a URL
		return nil, fmt.Errorf("listing %s: %w", what, err)
	}
	body, err := r.index(ctx, what, "referrers", subject.String(), url.Values{"artifactType": {artifactType}})
	var e *Error
	if errors.As(err, &e) && (e.Status == http.StatusNotFound || e.Status == http.StatusBadRequest || e.Status == http.StatusMethodNotAllowed) {
		body, err = r.index(ctx, what, "manifests", subject.Algorithm+"-"+subject.Hex, nil)
		if errors.As(err, &e) && e.Status == http.StatusNotFound {
			return nil, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", what, err)
	}
	ix, err := v1.ParseIndexManifest(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", what, err)
	}
	var all []v1.Descriptor
	for _, d := range ix.Manifests {
		if d.ArtifactType == artifactType && checkDescriptor(d) == nil {
			all = append(all, d)
		}
	}
	return all, nil
}

// index gets an index whole.
func (r *Repo) index(ctx context.Context, what, kind, id string, query url.Values) (body []byte, err error) {
	err = r.retry.Do(ctx, func(ctx context.Context, alive func()) error {
		return r.each(ctx, pulls, func(e *endpoint) error {
			u := e.url(kind, id)
			q := u.Query()
			for k, v := range query {
				q[k] = v
			}
			u.RawQuery = q.Encode()
			resp, err := e.do(ctx, http.MethodGet, what, u.String(), http.Header{"Accept": {string(types.OCIImageIndex)}})
			if err != nil {
				return err
			}
			if resp.StatusCode != http.StatusOK {
				defer discard(resp)
				return e.session.refusal(what, resp, e.session.home(resp.Request.URL))
			}
			defer resp.Body.Close()
			body, err = readAll(ctx, what, resp, maxManifest, alive)
			return err
		})
	})
	return body, err
}
