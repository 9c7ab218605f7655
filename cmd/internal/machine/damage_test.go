package machine

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDamageWatch(t *testing.T) {
	const (
		data  = "block 44 of the image is damaged, and the machine refused it: `pexfs fsck debian:12` mends it"
		trees = "block 7 of the image's Merkle tree is damaged, and the machine refused it: `pexfs fsck debian:12` mends it"
	)
	text := "[    1.5] device-mapper: verity: 253:0: data block 44 is corrupted\r\n" +
		"[    1.5] device-mapper: verity: 253:0: data block 44 is corrupted\r\n" + // said once
		"device-mapper: verity: sha256 using implementation \"sha256-generic\"\n\n" +
		strings.Repeat("x", 2*maxConsoleLine) + "device-mapper: verity: 253:0: data block 45 is corrupted\n" +
		"[    2.5] device-mapper: verity: 253:0: metadata block 7 is corrupted\n" +
		"device-mapper: verity: 253:0: data block 46 is corrupted" // no line yet
	for _, size := range []int{1, 7, 100, len(text)} {
		var got []string
		var out bytes.Buffer
		w := newDamageWatch(&out, "debian:12", slog.New(newWarner(func(e Event) { got = append(got, e.Warning) })))
		for rest := []byte(text); len(rest) > 0; {
			n, err := w.Write(rest[:min(size, len(rest))])
			if err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if out.String() != text {
			t.Errorf("%d bytes at a time: the console has other text", size)
		}
		if diff := cmp.Diff([]string{data, trees}, got); diff != "" {
			t.Errorf("%d bytes at a time (-want +got):\n%s", size, diff)
		}
	}
}
