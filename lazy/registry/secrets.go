package registry

import (
	"encoding/base64"
	"net/url"
	"strings"
)

// A server may quote what it was sent, credentials among it. Errors say what servers say, and are logged and shown: what is secret is taken
// out of them.
const (
	hidden    = "***" // stands for it
	minSecret = 4     // bytes; less of one tells little, and is in many words
	maxGiven  = 8     // tokens that are remembered
)

// secrets are what the server was sent, in the forms in which it may be quoted.
func (s *session) secrets() (all []string) {
	s.mu.Lock()
	a := s.auth
	raw := append([]string{a.Password, a.Auth, a.IdentityToken, a.RegistryToken}, s.given...)
	s.mu.Unlock()
	if a.Username != "" {
		raw = append(raw, base64.StdEncoding.EncodeToString([]byte(a.Username+":"+a.Password)))
	}
	if b, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
		_, password, _ := strings.Cut(string(b), ":")
		raw = append(raw, password)
	}
	for _, values := range s.header {
		for _, v := range values {
			if words := strings.Fields(v); len(words) > 0 {
				raw = append(raw, words[len(words)-1]) // behind the name of a scheme
			}
		}
	}
	for _, text := range raw {
		if len(text) >= minSecret {
			all = append(all, text, url.QueryEscape(text), url.PathEscape(text))
		}
	}
	return all
}

// hide takes what is secret out of what the server says.
func (s *session) hide(text string) string {
	for _, secret := range s.secrets() {
		text = strings.ReplaceAll(text, secret, hidden)
	}
	return text
}

// redacted is err without what is secret.
func (s *session) redacted(err error) error {
	if err == nil {
		return nil
	}
	said := err.Error()
	if text := s.hide(said); text != said {
		return &redactedError{text, err}
	}
	return err
}

// redactedError says less than the error that it wraps.
type redactedError struct {
	text string
	err  error
}

func (e *redactedError) Error() string { return e.text }

func (e *redactedError) Unwrap() error { return e.err }
