package daemon

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/pexfs/pex/lazy/store"
)

// Usage asks what the cache takes on disk.
func (c *Client) Usage(ctx context.Context) (*Usage, error) {
	u := new(Usage)
	return u, c.json(ctx, http.MethodGet, "/v1/usage", nil, u)
}

// GC has what nobody needs removed.
func (c *Client) GC(ctx context.Context, r GCRequest) (*GCResult, error) {
	res := new(GCResult)
	return res, c.json(ctx, http.MethodPost, "/v1/gc", r, res)
}

// Pin keeps an image in the cache though nobody uses it, or ends that.
func (c *Client) Pin(ctx context.Context, k store.Key, pinned bool) error {
	ctx, stop := c.attend(ctx)
	defer stop()
	method := http.MethodPut
	if !pinned {
		method = http.MethodDelete
	}
	resp, err := c.do(ctx, method, imagePath(k, "/pin"), nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// json reads an answer that is one value.
func (c *Client) json(ctx context.Context, method, path string, body, v any) error {
	ctx, stop := c.attend(ctx)
	defer stop()
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(v)
}
