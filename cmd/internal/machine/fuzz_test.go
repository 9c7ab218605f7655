package machine

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
)

// FuzzConsole has a guest write anything to its console. It is passed on as it is; what is taken from it for the user doesn't depend on
// how it came in pieces, is bounded, and can be shown.
func FuzzConsole(f *testing.F) {
	const line = "[    5.1] device-mapper: verity: 254:0: data block 123 is corrupted\n"
	f.Add([]byte(line), uint8(1))
	f.Add([]byte("a\r\n"+strings.Replace(line, "data", "metadata", 1)+line), uint8(7))
	f.Add([]byte(strings.Repeat("x", maxConsoleLine-10)+line), uint8(200))
	f.Add([]byte(strings.Replace(line, "123", "99999999999999999999", 1)+strings.Repeat("\n", 20)), uint8(3))
	f.Fuzz(func(t *testing.T, b []byte, piece uint8) {
		run := func(n int) (passed []byte, said []string) {
			var out bytes.Buffer
			w := newWarner(func(e Event) { said = append(said, e.Warning) })
			d := newDamageWatch(&out, "docker.io/library/x:1", slog.New(w))
			for rest := b; len(rest) > 0; {
				k := min(n, len(rest))
				if got, err := d.Write(rest[:k]); got != k || err != nil {
					t.Fatalf("%d of %d bytes, %v", got, k, err)
				}
				if len(d.line) > maxConsoleLine {
					t.Fatalf("it keeps %d bytes of a line", len(d.line))
				}
				rest = rest[k:]
			}
			return out.Bytes(), said
		}
		passed, said := run(max(len(b), 1))
		if !bytes.Equal(passed, b) {
			t.Errorf("%q is passed on as %q", b, passed)
		}
		inPieces, saidInPieces := run(max(int(piece), 1))
		if !bytes.Equal(inPieces, b) {
			t.Errorf("%q is passed on as %q, in pieces of %d", b, inPieces, piece)
		}
		if diff := cmp.Diff(said, saidInPieces); diff != "" {
			t.Errorf("warnings (-at once +in pieces of %d):\n%s", piece, diff)
		}
		checkWarnings(t, said)
	})
}

// FuzzWarnings passes on what others say, as a registry may in an error.
func FuzzWarnings(f *testing.F) {
	f.Add("reading layer", "500: \x1b[31mno\x1b[0m", "\u202egnp")
	f.Fuzz(func(t *testing.T, text, err, more string) {
		var said []string
		w := slog.New(newWarner(func(e Event) { said = append(said, e.Warning) }))
		for _, s := range []string{text, more, text} {
			w.Log(context.Background(), slog.LevelWarn, s, "err", err)
			w.With("error", more).Error(s, "other", text)
		}
		checkWarnings(t, said)
	})
}

// checkWarnings checks that warnings can be shown, are few, and differ.
func checkWarnings(t *testing.T, said []string) {
	t.Helper()
	if len(said) > maxWarnings {
		t.Errorf("%d warnings", len(said))
	}
	seen := make(map[string]bool)
	for _, s := range said {
		if seen[s] || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("warning %q", s)
		}
		seen[s] = true
	}
}
