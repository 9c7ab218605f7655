package daemon

import (
	"context"
	"encoding/json"
	"io"
	"net/http"

	"github.com/pexfs/pex/lazy/profile"
	"github.com/pexfs/pex/lazy/store"
)

// Replay has the profile of a name replayed, or the one without a name, if there is one, and returns at once.
func (c *Client) Replay(ctx context.Context, k store.Key, r ReplayRequest) error {
	return c.post(ctx, http.MethodPost, imagePath(k, "/replay"), r)
}

// Reads says what was read of an image.
func (c *Client) Reads(ctx context.Context, k store.Key, r ReadsRequest) error {
	return c.post(ctx, http.MethodPost, imagePath(k, "/reads"), r)
}

func (c *Client) post(ctx context.Context, method, path string, body any) error {
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Profiles lists the cache's profiles, the oldest first.
func (c *Client) Profiles(ctx context.Context) ([]ProfileSummary, error) {
	resp, err := c.do(ctx, http.MethodGet, "/v1/profiles", nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var all []ProfileSummary
	return all, json.NewDecoder(resp.Body).Decode(&all)
}

// Profile gives a profile of the cache, encoded.
func (c *Client) Profile(ctx context.Context, id string) ([]byte, error) {
	resp, err := c.do(ctx, http.MethodGet, "/v1/profiles/"+id, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, profile.MaxSize+1))
}

// ImportProfile keeps an encoded profile, in place of one of the same image and name.
func (c *Client) ImportProfile(ctx context.Context, b []byte) error {
	if _, err := profile.Decode(b); err != nil {
		return err
	}
	return c.post(ctx, http.MethodPut, "/v1/profiles", json.RawMessage(b))
}

// RemoveProfile forgets a profile.
func (c *Client) RemoveProfile(ctx context.Context, id string) error {
	return c.post(ctx, http.MethodDelete, "/v1/profiles/"+id, nil)
}
