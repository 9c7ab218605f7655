package layer

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pexfs/pex/lazy/tree"
)

// TestTOCs reads TOCs written by hand for a blob whose data has 1,000 bytes. TestHostileTOC has those that are refused.
func TestTOCs(t *testing.T) {
	sum := `"chunkDigest":"` + digestOf(nil).String() + `"`
	reg := func(name string, more string) string {
		return fmt.Sprintf(`{"name":%q,"type":"reg",%s}`, name, more)
	}
	for _, tt := range []struct {
		name    string
		entries string // joined to a TOC, if it isn't one
	}{
		{name: "no entries", entries: ``},
		{name: "null", entries: `{"version":1,"entries":null}`},
		{name: "unknown keys", entries: `{"version":1,"x":[1,{"y":[true,false,null,-1.5e+3]}],"entries":[{"type":"fifo","name":"p","z":{"a":"b"}}]}`},
		{name: "a file", entries: reg("f", `"size":10,"offset":5,`+sum)},
		{name: "a file with its own digest", entries: reg("f", `"size":10,"offset":5,"digest":"`+digestOf(nil).String()+`"`)},
		{name: "twice the same chunk", entries: reg("f", `"size":10,"offset":5,`+sum) + "," + reg("g", `"size":10,"offset":5,`+sum)},
		{name: "landmarks", entries: reg(".prefetch.landmark", `"size":1,"offset":5`) + "," + reg("./.no.prefetch.landmark", `"size":1`) + `,{"type":"chunk","name":"./.no.prefetch.landmark"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			toc := tt.entries
			if !strings.HasPrefix(toc, `{"version"`) {
				toc = `{"version":1,"entries":[` + toc + `]}`
			}
			ix, err := parseTOC(strings.NewReader(toc), 1, 1000, Gzip, Limits{}.withDefaults())
			if err != nil {
				t.Fatal(err)
			}
			checkTOC(t, ix, 1000)
		})
	}
}

func TestTOCFieldsOfEntries(t *testing.T) {
	ix, err := parseTOC(strings.NewReader(`{"entries":[
		{"name":"su","type":"reg","mode":35309,"modtime":"1969-12-31T23:59:58Z","uid":1,"gid":4294967295,"linkName":"left over","devMajor":7},
		{"name":"l\u00e4\ud83d\ude00","type":"symlink","linkName":"\"\\\/\b\f\n\r\t"},
		{"name":"h","type":"hardlink","linkName":"su","modtime":"0001-01-01T00:00:00Z"},
		{"name":"b","type":"block","devMajor":259,"devMinor":4294967295,"size":5}
	]}`), 0, 0, Gzip, Limits{}.withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	want := []tree.Entry{
		{Name: "su", Type: tree.Regular, Mode: 0o4755, Mtime: tree.Time{Sec: -2}, UID: 1, GID: 1<<32 - 1},
		{Name: "lä😀", Type: tree.Symlink, Linkname: "\"\\/\b\f\n\r\t"},
		{Name: "h", Type: tree.HardLink, Linkname: "su"},
		{Name: "b", Type: tree.Block, Major: 259, Minor: 1<<32 - 1},
	}
	if d := cmp.Diff(want, ix.Entries, cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
}

// FuzzTOC feeds the JSON.
func FuzzTOC(f *testing.F) {
	sum := digestOf([]byte("a")).String()
	f.Add([]byte(fmt.Sprintf(`{"version":1,"entries":[{"name":"f","type":"reg","size":10,"offset":5,"chunkSize":4,"chunkDigest":%q},{"type":"chunk","offset":20,"chunkOffset":4,"chunkDigest":%q},{"name":"d/","type":"dir","mode":493,"modtime":"2001-09-09T01:46:40Z","xattrs":{"user.a":"AA=="}}]}`, sum, sum)))
	f.Add([]byte(fmt.Sprintf(`{"entries":[{"name":"z","type":"reg","size":99999999,"offset":5,"endOffset":9,"chunkType":"zeros","chunkDigest":%q},{"name":"g","type":"reg","size":4,"offset":9,"innerOffset":10,"digest":%q}]}`, sum, sum)))
	f.Fuzz(func(t *testing.T, b []byte) {
		ix, err := parseTOC(bytes.NewReader(b), int64(len(b)), 1000, Gzip, Limits{}.withDefaults())
		if err != nil {
			return
		}
		checkTOC(t, ix, 1000)
		roundTrip(t, ix)
	})
}
