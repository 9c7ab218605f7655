package hosts

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// table is what is said of a host: in the file itself of the server, in [host."…"] of another one.
type table struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`     // a path or a list
	Client       any            `toml:"client"` // a path, or a list of paths or of pairs
	SkipVerify   bool           `toml:"skip_verify"`
	Header       map[string]any `toml:"header"` // a string or a list each
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
	Proxy        string         `toml:"proxy"`
}

type file struct {
	table
	Server string           `toml:"server"`
	Host   map[string]table `toml:"host"`
}

// refusal is something in a file that isn't taken.
type refusal struct {
	keys []string // where, from the top
	err  error
}

func (r *refusal) Error() string { return r.err.Error() }

func refuse(keys []string, format string, args ...any) error {
	return &refusal{keys, fmt.Errorf(format, args...)}
}

// parse reads a hosts.toml. unknown tells of the settings in it that aren't known, in one line.
func parse(name string, b []byte, registry string) (all []Host, unknown string, err error) {
	all, left, err := parseFile(filepath.Dir(name), b, registry)
	if err == nil {
		return all, tellUnknown(name, b, left), nil
	}
	line := 0
	var syntax toml.ParseError
	var r *refusal
	switch {
	case errors.As(err, &syntax):
		line, err = syntax.Position.Line, errors.New(syntax.Message)
		if syntax.Message == "" {
			err = errors.New(strings.TrimPrefix(syntax.Error(), "toml: "))
		}
	case errors.As(err, &r):
		line = lineOf(b, r.keys)
	default: // of a value's type, the parser tells the line only in words
		if n, serr := fmt.Sscanf(err.Error(), "toml: line %d ", &line); n == 1 && serr == nil {
			_, said, _ := strings.Cut(err.Error(), "): ")
			err = errors.New(said)
		}
	}
	if line == 0 {
		return nil, "", fmt.Errorf("reading %s: %w", name, err)
	}
	return nil, "", fmt.Errorf("reading %s, line %d: %w", name, line, err)
}

const maxUnknown = 8 // settings that are told of

func tellUnknown(name string, b []byte, left []toml.Key) string {
	if len(left) == 0 {
		return ""
	}
	var each []string
	for _, key := range left[:min(len(left), maxUnknown)] {
		each = append(each, fmt.Sprintf("line %d: %q", lineOf(b, key), key.String()))
	}
	if more := len(left) - maxUnknown; more > 0 {
		each = append(each, fmt.Sprintf("and %d more", more))
	}
	return fmt.Sprintf("%s has settings that aren't known and are left out: %s", name, strings.Join(each, ", "))
}

// parseFile gives the hosts, and the settings that aren't known.
func parseFile(dir string, b []byte, registry string) (all []Host, unknown []toml.Key, err error) {
	var f file
	md, err := toml.Decode(string(b), &f)
	if err != nil {
		return nil, nil, err
	}
	for _, key := range md.Keys() { // in the order of the file
		if len(key) != 2 || key[0] != "host" {
			continue
		}
		h, err := f.Host[key[1]].host(dir, key[1], key, nil)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, h)
	}
	h, err := f.table.host(dir, f.Server, nil, own(registry))
	if err != nil {
		return nil, nil, err
	}
	if h.Root.Scheme == "" && h.TLS != nil {
		h.Root.Scheme = "https"
	}
	return append(all, h), md.Undecoded(), nil
}

// host makes a Host of what is said of it. at is where that is; fallback is its address if none is given.
func (t table) host(dir, address string, at []string, fallback *url.URL) (Host, error) {
	in := func(keys ...string) []string { return append(append([]string(nil), at...), keys...) }
	h := Host{Root: fallback, Pull: true, Resolve: true, Header: http.Header{}}
	if address != "" || fallback == nil {
		where := at
		if at == nil {
			where = []string{"server"}
		}
		u, err := rootOf(address, t.OverridePath)
		if err != nil {
			return Host{}, refuse(where, "%w", err)
		}
		h.Root = u
	}
	if t.Capabilities != nil {
		h.Pull, h.Resolve = false, false
		for _, c := range t.Capabilities {
			switch strings.ToLower(c) {
			case "pull":
				h.Pull = true
			case "resolve":
				h.Resolve = true
			case "push":
			default:
				return Host{}, refuse(in("capabilities"), "%q is none of pull, resolve and push", c)
			}
		}
	}
	for k, v := range t.Header {
		values, ok := texts(v)
		if !ok || !token(k) {
			return Host{}, refuse(in("header", k), "%q is not a header with a text or a list of texts", k)
		}
		for _, s := range values {
			if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				return Host{}, refuse(in("header", k), "the value of %q can't be sent", k)
			}
			h.Header.Add(k, s)
		}
	}
	if t.DialTimeout != "" {
		d, err := time.ParseDuration(t.DialTimeout)
		if err != nil || d <= 0 {
			return Host{}, refuse(in("dial_timeout"), "%q is not a length of time", t.DialTimeout)
		}
		h.DialTimeout = d
	}
	if t.Proxy != "" {
		u, err := url.Parse(t.Proxy)
		if err != nil || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) {
			return Host{}, refuse(in("proxy"), "it is not the address of a proxy")
		}
		h.Proxy = u
	}
	return h, t.certify(&h, dir, in)
}

// certify sets how to speak TLS.
func (t table) certify(h *Host, dir string, in func(...string) []string) error {
	cas, ok := texts(t.CA)
	if !ok {
		return refuse(in("ca"), "want a path or a list of paths")
	}
	pairs, ok := pairs(t.Client)
	if !ok {
		return refuse(in("client"), "want a path, or a list of paths or of pairs of certificate and key")
	}
	var c certs
	for _, name := range cas {
		if err := c.addCA(absolute(dir, name)); err != nil {
			return refuse(in("ca"), "%w", err)
		}
	}
	for _, p := range pairs {
		key := p[1]
		if key == "" {
			key = p[0]
		}
		if err := c.addClient(absolute(dir, p[0]), absolute(dir, key)); err != nil {
			return refuse(in("client"), "%w", err)
		}
	}
	c.apply(h, t.SkipVerify)
	return nil
}

// rootOf makes the root of the API of a host's address.
func rootOf(address string, override bool) (*url.URL, error) {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	switch {
	case err != nil:
		return nil, errors.New("it is not an address")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("%q is neither http nor https", u.Scheme)
	case u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("want an address of scheme, host and path only")
	}
	p := strings.TrimSuffix(path.Clean("/"+u.Path), "/")
	if !override && !strings.HasSuffix(p, "/v2") {
		p += "/v2"
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: p}, nil
}

func absolute(dir, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(dir, name)
}

// token says whether s is what the name of a header may be (RFC 9110, section 5.6.2).
func token(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
}

// texts reads a text or a list of texts; nothing is an empty list.
func texts(v any) ([]string, bool) {
	switch v := v.(type) {
	case nil:
		return nil, true
	case string:
		return []string{v}, true
	case []any:
		var all []string
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, false
			}
			all = append(all, s)
		}
		return all, true
	}
	return nil, false
}

// pairs reads a path, or a list of paths or of pairs of paths. The second of a pair may be empty.
func pairs(v any) ([][2]string, bool) {
	list, ok := v.([]any)
	if !ok {
		one, ok := texts(v)
		if !ok || len(one) == 0 {
			return nil, ok
		}
		return [][2]string{{one[0]}}, true
	}
	var all [][2]string
	for _, e := range list {
		p, ok := texts(e)
		if !ok || len(p) == 0 || len(p) > 2 || p[0] == "" {
			return nil, false
		}
		pair := [2]string{p[0]}
		if len(p) == 2 {
			pair[1] = p[1]
		}
		all = append(all, pair)
	}
	return all, true
}

// lineOf finds the line of a key, or of the table that it is in, counted from 1; 0 where it isn't found. The parser tells none.
func lineOf(b []byte, keys []string) int {
	found, in := 0, ""
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		text := strings.TrimSpace(line)
		if strings.HasPrefix(text, "[") {
			in = text
			if len(keys) > 1 && strings.Contains(text, keys[1]) && found == 0 {
				found = n
			}
		}
		name, _, ok := strings.Cut(text, "=")
		name = strings.Trim(strings.TrimSpace(name), `"'`)
		last := keys[len(keys)-1]
		if !ok || name != last && !strings.HasSuffix(name, "."+last) {
			continue
		}
		if len(keys) < 2 || keys[0] != "host" || strings.Contains(in, keys[1]) {
			return n
		}
	}
	return found
}
