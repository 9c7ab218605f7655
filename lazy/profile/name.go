package profile

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"unicode/utf8"
)

// Name is what profiles of a command are called: its words as a shell would take them. A name longer than MaxName is cut and made
// distinct by a hash.
func Name(argv []string) string {
	words := make([]string, len(argv))
	for i, w := range argv {
		words[i] = quote(w)
	}
	s := strings.ToValidUTF8(strings.Join(words, " "), "\ufffd")
	if len(s) <= MaxName {
		return s
	}
	h := sha256.Sum256([]byte(strings.Join(words, " ")))
	end := MaxName - 80
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "… sha256:" + hex.EncodeToString(h[:])
}

// quote writes a word so that a shell reads it back.
func quote(w string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("%+,-./:=@_", r)
	}
	if w != "" && strings.IndexFunc(w, func(r rune) bool { return !plain(r) }) < 0 {
		return w
	}
	return "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
}
