package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/pexfs/pex/cmd/internal/metrics"
	"github.com/pexfs/pex/lazy"
	"github.com/pexfs/pex/lazy/store"
)

// ErrGone is wrapped where the daemon ended before it had answered, or there is none.
var ErrGone = errors.New("no daemon answers")

// Client talks to the daemon of one cache folder. Its methods may be called concurrently.
type Client struct {
	dir, sock string
	http      *http.Client
	ensures   bool          // asks the next daemon, and starts it, where one ends before it has answered
	needs     chan struct{} // has an entry for each Need under way
}

// NewClient makes a client; it connects with each call.
func NewClient(cacheDir string) (*Client, error) {
	sock, err := socketPath(cacheDir)
	if err != nil {
		return nil, err
	}
	return newClient(cacheDir, sock), nil
}

// newClient is a client of the daemon at a socket.
func newClient(cacheDir, sock string) *Client {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "unix", sock)
			if err != nil {
				return nil, err
			}
			if err := checkServer(conn); err != nil {
				conn.Close()
				return nil, err
			}
			return conn, nil
		},
		MaxIdleConnsPerHost: needsMost,
	}
	return &Client{dir: cacheDir, sock: sock, http: &http.Client{Transport: t}, needs: make(chan struct{}, needsMost)}
}

// do sends a request and turns an answer that is not a success into its error.
func (c *Client) do(ctx context.Context, method, path string, body any) (resp *http.Response, err error) {
	err = c.persist(ctx, func() (err error) {
		resp, err = c.ask(ctx, method, path, body)
		return err
	})
	return resp, err
}

// ask is do with the daemon that there is.
func (c *Client) ask(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://pex"+path, r)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		var ue *url.Error
		if errors.Is(err, errForeign) && errors.As(err, &ue) {
			return nil, ue.Err
		}
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	e := new(Error)
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if json.Unmarshal(b, e) != nil || e.Text == "" {
		return nil, fmt.Errorf("the daemon answered %s: %.200s", resp.Status, b)
	}
	return nil, e
}

// stream reads lines of Message until f says stop or an error comes. Where the daemon ends meanwhile, those of the next one follow.
func (c *Client) stream(ctx context.Context, method, path string, body any, f func(Message) (stop bool)) error {
	return c.persist(ctx, func() error { return c.lines(ctx, method, path, body, f) })
}

// lines is stream with the daemon that there is.
func (c *Client) lines(ctx context.Context, method, path string, body any, f func(Message) (stop bool)) error {
	ctx, stop := c.attend(ctx)
	defer stop()
	resp, err := c.ask(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var m Message
		if err := dec.Decode(&m); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("%w: its answer broke off: %w", ErrGone, err)
		}
		stop := f(m)
		if m.Error != nil {
			return m.Error
		}
		if stop {
			return nil
		}
	}
}

// Open opens an image; progress may be nil.
func (c *Client) Open(ctx context.Context, r OpenRequest, progress func(lazy.Event)) (*Opened, error) {
	var o *Opened
	err := c.stream(ctx, http.MethodPost, "/v1/open", r, func(m Message) bool {
		if m.Event != nil && progress != nil {
			progress(*m.Event)
		}
		o = m.Opened
		return o != nil
	})
	return o, err
}

func imagePath(k store.Key, what string) string {
	return "/v1/images/" + url.PathEscape(string(k)) + what
}

// Lease holds an image in the cache until it is closed or the daemon ends. who says to people whom it is for.
func (c *Client) Lease(ctx context.Context, k store.Key, who string, fill bool) (io.ReadCloser, error) {
	q := url.Values{"who": {who}}
	if fill {
		q.Set("fill", "1")
	}
	resp, err := c.do(ctx, http.MethodGet, imagePath(k, "/lease?"+q.Encode()), nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// Need waits until the bytes that r names of the image file are present. Where the cache takes no more it puts the first of them, one at
// least, into p instead, which has r.N bytes, and returns how many.
func (c *Client) Need(ctx context.Context, k store.Key, r NeedRequest, p []byte) (n int, err error) {
	done, err := c.begin(ctx, &r)
	if err != nil {
		return 0, err
	}
	defer done()
	resp, err := c.do(ctx, http.MethodPost, imagePath(k, "/need"), r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNoContent {
		return 0, nil
	}
	if resp.ContentLength <= 0 || resp.ContentLength > int64(len(p)) {
		return 0, fmt.Errorf("the daemon gave %d bytes, where %d were wanted", resp.ContentLength, len(p))
	}
	if n, err = io.ReadFull(resp.Body, p[:resp.ContentLength]); err != nil {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return 0, fmt.Errorf("%w: its answer broke off: %w", ErrGone, err)
	}
	return n, nil
}

// Wait waits until the image is sealed.
func (c *Client) Wait(ctx context.Context, k store.Key, progress func(ImageStatus)) error {
	return c.stream(ctx, http.MethodGet, imagePath(k, "/wait"), nil, func(m Message) bool {
		if m.Image == nil {
			return false
		}
		if progress != nil {
			progress(*m.Image)
		}
		return m.Image.State == store.Sealed
	})
}

// Fsck checks an image, and with heal makes anew what is damaged; progress may be nil. Where that fails the report comes with the
// error.
func (c *Client) Fsck(ctx context.Context, k store.Key, r FsckRequest, progress func(lazy.Event)) (rep lazy.FsckReport, err error) {
	err = c.stream(ctx, http.MethodPost, imagePath(k, "/fsck"), r, func(m Message) bool {
		if m.Event != nil && progress != nil {
			progress(*m.Event)
		}
		if m.Fsck != nil {
			rep = *m.Fsck
		}
		return m.Fsck != nil
	})
	return rep, err
}

// Why asks what an image's readers waited for since the daemon looks.
func (c *Client) Why(ctx context.Context, k store.Key) (*metrics.Why, error) {
	resp, err := c.do(ctx, http.MethodGet, imagePath(k, "/why"), nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	w := new(metrics.Why)
	return w, json.NewDecoder(resp.Body).Decode(w)
}

// Remove takes an image out of the cache, and forgets references. Where a daemon ends before it has answered, and the next one hasn't got the
// image, it is taken out.
func (c *Client) Remove(ctx context.Context, k store.Key, refs ...string) error {
	ctx, stop := c.attend(ctx)
	defer stop()
	begun := false // a daemon may have heard of it before
	return c.persist(ctx, func() error {
		resp, err := c.ask(ctx, http.MethodDelete, imagePath(k, "?"+url.Values{"ref": refs}.Encode()), nil)
		var e *Error
		if begun && errors.As(err, &e) && e.Code == CodeNotCached {
			return nil
		}
		var op *net.OpError
		begun = begun || errors.Is(err, ErrGone) && !(errors.As(err, &op) && op.Op == "dial")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
}

// Status asks what the daemon does and has.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	ctx, stop := c.attend(ctx)
	defer stop()
	resp, err := c.do(ctx, http.MethodGet, "/v1/status", nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	s := new(Status)
	err = json.NewDecoder(resp.Body).Decode(s)
	s.Socket = c.sock
	return s, err
}
