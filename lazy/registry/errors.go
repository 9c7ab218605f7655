package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/pexfs/pex/lazy/blob"
)

var (
	// ErrUnauthorized is wrapped where the registry wants other credentials, or doesn't tell whether an image exists
	// to those it doesn't know: logging in may help.
	ErrUnauthorized = errors.New("access denied")
	// ErrNotFound is wrapped where the registry hasn't got the image or blob.
	ErrNotFound = errors.New("not found in the registry")
	// ErrUnreachable is wrapped where no registry answers: its name isn't known, or nothing listens.
	ErrUnreachable = errors.New("registry unreachable")
)

// Error is a request that failed.
type Error struct {
	What    string // what was asked for: "blob sha256:…"
	URL     string // the query is left out, it may hold a signature
	Status  int    // of the answer, 0 if there was none
	Code    string // the registry's own, "MANIFEST_UNKNOWN"; or empty
	Message string // what it says to people; or empty

	kind       error // one of the sentinels, or nil
	err        error // what happened, or nil
	temporary  bool
	retryAfter time.Duration
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "getting %s from %s", e.What, e.URL)
	if e.kind != nil {
		fmt.Fprintf(&b, ": %v", e.kind)
	}
	if e.Status != 0 {
		fmt.Fprintf(&b, ": %d %s", e.Status, http.StatusText(e.Status))
	}
	if e.Code != "" {
		fmt.Fprintf(&b, ": %s", e.Code)
	}
	if e.Message != "" {
		fmt.Fprintf(&b, ": %s", e.Message)
	}
	if e.retryAfter > 0 && e.Status != 0 {
		fmt.Fprintf(&b, ": it asks to be left alone for %v", e.retryAfter.Round(time.Second))
	}
	if e.err != nil {
		b.WriteString(": " + printable(e.err.Error())) // it may quote what came
	}
	return b.String()
}

// Unwrap gives the sentinel and what happened.
func (e *Error) Unwrap() []error {
	var errs []error
	if e.kind != nil {
		errs = append(errs, e.kind)
	}
	if e.err != nil {
		errs = append(errs, e.err)
	}
	return errs
}

// Temporary says that the same request may work later.
func (e *Error) Temporary() bool { return e.temporary }

// RetryAfter is how long the registry asks to wait before the next request; 0 if it didn't.
func (e *Error) RetryAfter() time.Duration { return e.retryAfter }

// Down is the server that wasn't to be reached, by host and port; or empty, if that isn't what happened.
func (e *Error) Down() string {
	u, err := url.Parse(e.URL)
	if err != nil || e.kind != ErrUnreachable {
		return ""
	}
	return u.Host
}

// redact is u without what may be secret: user, query, fragment.
func redact(u *url.URL) string {
	if u == nil {
		return "?"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// failure is the Error for a request that got no answer, or whose answer broke off.
func failure(what string, u *url.URL, err error) error {
	var ours *Error
	if errors.As(err, &ours) {
		return ours // of the handshake, it knows better
	}
	// An url.Error repeats method and URL, the latter with its query.
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	e := &Error{What: what, URL: redact(u), err: err, temporary: true}
	var held *pauseError
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(err, &held):
		e.retryAfter = held.RetryAfter()
	case errors.Is(err, errPlainHTTP), errors.Is(err, errRedirects):
		e.temporary = false
	case errors.As(err, &dns):
		e.kind, e.temporary = ErrUnreachable, !dns.IsNotFound
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH),
		errors.As(err, &op) && op.Op == "dial":
		e.kind = ErrUnreachable
	case isTLS(err):
		e.temporary = false
	case errors.Is(err, io.EOF):
		e.err = io.ErrUnexpectedEOF
	}
	return e
}

// maxErrorBody is how much of an error's body is read, in bytes; maxMessage how much of its message is kept.
const (
	maxErrorBody = 64 << 10
	maxMessage   = 300
)

// refusal is the Error for an answer with a status that isn't what was asked for. home says that the registry itself
// answered, not a host it redirected to. The body is read but not closed.
func (s *session) refusal(what string, resp *http.Response, home bool) error {
	e := &Error{What: what, URL: redact(resp.Request.URL), Status: resp.StatusCode}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // what can't be read says nothing
	var said struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &said) == nil && len(said.Errors) > 0 {
		e.Code, e.Message = printable(s.hide(said.Errors[0].Code)), printable(s.hide(said.Errors[0].Message))
	}
	e.classify(home)
	if e.temporary {
		e.retryAfter = retryAfter(resp.Header)
	}
	return e
}

func (e *Error) classify(home bool) {
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		if e.Code == "TOOMANYREQUESTS" {
			e.temporary = true
		} else if home {
			e.kind = ErrUnauthorized
		} else {
			e.temporary = true // the link the registry gave has expired; it will give another
		}
	case http.StatusNotFound, http.StatusGone:
		e.kind = ErrNotFound
	case http.StatusRequestedRangeNotSatisfiable, http.StatusNotImplemented:
		e.err = blob.ErrRangeUnsupported
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		e.temporary = true
	default: // of 500 and more proxies have some of their own
		e.temporary = e.Status >= 500
	}
}

// retryAfter reads the header of RFC 9110, section 10.2.3: seconds or a date.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(time.Until(t), 0)
	}
	return 0
}

// printable is s cut to a length and without what could disturb a terminal or a log.
func printable(s string) string {
	if len(s) > maxMessage {
		s = s[:maxMessage] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// handshakeError is the Error for a ping or token request of go-containerregistry that failed.
func (s *session) handshakeError(what string, u *url.URL, err error) error {
	var te *transport.Error
	if !errors.As(err, &te) {
		return failure(what, u, err)
	}
	e := &Error{What: what, URL: redact(u), Status: te.StatusCode}
	if te.Request != nil {
		e.URL = redact(te.Request.URL)
	}
	if len(te.Errors) > 0 {
		e.Code, e.Message = printable(s.hide(string(te.Errors[0].Code))), printable(s.hide(te.Errors[0].Message))
	}
	e.classify(true)
	return e
}
