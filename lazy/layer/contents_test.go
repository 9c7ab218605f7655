package layer

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pexfs/pex/lazy/tree"
)

// TestTOCs reads TOCs written by hand for a blob whose data has 1,000 bytes.
func TestTOCs(t *testing.T) {
	sum := `"chunkDigest":"` + digestOf(nil).String() + `"`
	reg := func(name string, more string) string {
		return fmt.Sprintf(`{"name":%q,"type":"reg",%s}`, name, more)
	}
	big := strings.Repeat("A", 4*(maxXattrs/3+10))
	for _, tt := range []struct {
		name    string
		entries string // joined to a TOC, if it isn't one
		noTOC   bool
		want    string // in the error; "" if there is none
	}{
		{name: "no entries", entries: ``},
		{name: "null", entries: `{"version":1,"entries":null}`},
		{name: "unknown keys", entries: `{"x":[1,{"y":[true,false,null,-1.5e+3]}],"entries":[{"type":"fifo","name":"p","z":{"a":"b"}}]}`},
		{name: "a file", entries: reg("f", `"size":10,"offset":5,`+sum)},
		{name: "a file with its own digest", entries: reg("f", `"size":10,"offset":5,"digest":"`+digestOf(nil).String()+`"`)},
		{name: "twice the same chunk", entries: reg("f", `"size":10,"offset":5,`+sum) + "," + reg("g", `"size":10,"offset":5,`+sum)},
		{name: "landmarks", entries: reg(".prefetch.landmark", `"size":1,"offset":5`) + "," + reg("./.no.prefetch.landmark", `"size":1`) + `,{"type":"chunk","name":"./.no.prefetch.landmark"}`},

		{name: "not JSON", entries: `{"version":1,"entries":[`, noTOC: true, want: "JSON at byte"},
		{name: "not an object", entries: `[`, noTOC: true, want: "JSON"},
		{name: "bytes behind", entries: `{} {}`, noTOC: true, want: "behind the end"},
		{name: "version", entries: `{"version":2}`, noTOC: true, want: "version 2"},
		{name: "nested too deep", entries: `{"x":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}`, noTOC: true, want: "too deep"},
		{name: "name not UTF-8", entries: `{"name":"a\ufffd","type":"dir"}`, noTOC: true, want: "UTF-8"},
		{name: "name with raw bytes", entries: "{\"name\":\"a\xff\",\"type\":\"dir\"}", noTOC: true, want: "UTF-8"},
		{name: "half a surrogate", entries: `{"name":"a\ud800","type":"dir"}`, noTOC: true, want: "UTF-8"},
		{name: "link not UTF-8", entries: `{"name":"a","linkName":"�","type":"symlink"}`, noTOC: true, want: "UTF-8"},
		{name: "attribute not UTF-8", entries: `{"name":"a","type":"dir","xattrs":{"user.\ufffd":""}}`, noTOC: true, want: "UTF-8"},
		{name: "unknown type", entries: `{"name":"a","type":"door"}`, noTOC: true, want: `type "door"`},
		{name: "no type", entries: `null`, noTOC: true, want: "type"},
		{name: "time", entries: `{"name":"a","type":"dir","modtime":"now"}`, noTOC: true, want: "time"},
		{name: "base64", entries: `{"name":"a","type":"dir","xattrs":{"user.a":"%"}}`, noTOC: true, want: "base64"},
		{name: "no digest", entries: reg("f", `"size":10,"offset":5`), noTOC: true, want: "vouches"},
		{name: "a file's digest for several chunks", entries: reg("f", `"size":10,"chunkSize":5,"digest":"x"`), noTOC: true, want: "vouches"},
		{name: "another algorithm", entries: reg("f", `"size":10,"chunkDigest":"md5:x"`), noTOC: true, want: "not a SHA-256"},
		{name: "a huge chunk", entries: reg("f", fmt.Sprintf(`"size":%d,%s`, maxChunk+1, sum)), noTOC: true, want: "67108865 bytes"},
		{name: "a huge hole", entries: reg("f", fmt.Sprintf(`"size":%d,"chunkType":"zeros",%s`, maxMember+1, sum)), noTOC: true, want: "bytes"},
		{name: "a strange chunk", entries: reg("f", `"size":10,"chunkType":"ones",`+sum), noTOC: true, want: "ones"},
		{name: "far within a member", entries: reg("f", fmt.Sprintf(`"size":10,"innerOffset":%d,%s`, maxMember, sum)), noTOC: true, want: "within"},

		{name: "beyond the data", entries: reg("f", `"size":10,"offset":1000,`+sum), want: `entry 0 "f": a chunk at offset 1000: the blob's data ends at 1000`},
		{name: "negative offset", entries: reg("f", `"size":10,"offset":-1,`+sum), want: "offset -1"},
		{name: "negative place in a member", entries: reg("f", `"size":10,"innerOffset":-1,`+sum), want: "-1 within"},
		{name: "negative size", entries: reg("f", `"size":-10`), want: "size -10"},
		{name: "negative chunk", entries: reg("f", `"size":10,"chunkSize":-1,`+sum), want: "a chunk of -1 bytes"},
		{name: "chunk beyond the file", entries: reg("f", `"size":10,"chunkSize":11,`+sum), want: "a chunk of 11 bytes at 0 of 10"},
		{name: "chunks missing", entries: reg("f", `"size":10,"chunkSize":5,`+sum), want: `the chunks of "f" have 5 bytes, the file has 10`},
		{name: "chunks missing before another file", entries: reg("f", `"size":10,"chunkSize":5,`+sum) + "," + reg("g", `"size":0`), want: "have 5 bytes"},
		{name: "a gap", entries: reg("f", `"size":10,"chunkSize":5,`+sum) + `,{"type":"chunk","chunkOffset":6,` + sum + `}`, want: "at 6 where 5 is next"},
		{name: "a chunk too many", entries: reg("f", `"size":10,`+sum) + `,{"type":"chunk","chunkOffset":10,` + sum + `}`, want: "a chunk of 0 bytes at 10 of 10"},
		{name: "a chunk of nothing", entries: `{"type":"chunk","name":"f"}`, want: "belongs to no file"},
		{name: "a chunk of a directory", entries: `{"type":"dir","name":"f"},{"type":"chunk","name":"f"}`, want: "belongs to no file"},
		{name: "a chunk of another file", entries: reg("f", `"size":10,"chunkSize":5,`+sum) + `,{"type":"chunk","name":"g","chunkOffset":5,` + sum + `}`, want: `behind "f"`},
		{name: "overlap within a member", entries: reg("f", `"size":10,"offset":5,`+sum) + "," + reg("g", `"size":10,"offset":5,"innerOffset":9,`+sum), want: "overlap at offset 5, 9 within"},
		{name: "other digests of the same bytes", entries: reg("f", `"size":10,"offset":5,`+sum) + "," + reg("g", `"size":10,"offset":5,"chunkDigest":"`+digestOf([]byte{1}).String()+`"`), want: "overlap"},
		{name: "end before start", entries: reg("f", `"size":10,"offset":5,"endOffset":5,`+sum), want: "ends at 5"},
		{name: "end beyond the data", entries: reg("f", `"size":10,"offset":5,"endOffset":1001,`+sum), want: "reaches to 1001"},
		{name: "end in another's member", entries: reg("f", `"size":10,"offset":5,"endOffset":60,`+sum) + "," + reg("g", `"size":10,"offset":50,`+sum), want: "reaches to 60"},
		{name: "uid", entries: `{"name":"a","type":"dir","uid":-1}`, want: "uid -1"},
		{name: "gid", entries: `{"name":"a","type":"dir","gid":4294967296}`, want: "gid 4294967296"},
		{name: "device", entries: `{"name":"a","type":"char","devMajor":-5}`, want: "major -5"},
		{name: "attributes", entries: `{"name":"a","type":"dir","xattrs":{"user.a":"` + big + `"}}`, want: "attributes of"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			toc := tt.entries
			if !strings.HasPrefix(toc, `{"version"`) && !strings.HasPrefix(toc, `{"x"`) && !strings.HasPrefix(toc, "[") && !strings.HasPrefix(toc, "{}") {
				toc = `{"version":1,"entries":[` + toc + `]}`
			}
			ix, err := parseTOC([]byte(toc), 1000, Gzip, Limits{}.withDefaults())
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				checkTOC(t, ix, 1000)
				return
			}
			if err == nil || errors.Is(err, ErrNoTOC) != tt.noTOC || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestTOCFieldsOfEntries(t *testing.T) {
	ix, err := parseTOC([]byte(`{"entries":[
		{"name":"su","type":"reg","mode":35309,"modtime":"1969-12-31T23:59:58Z","uid":1,"gid":4294967295,"linkName":"left over","devMajor":7},
		{"name":"l\u00e4\ud83d\ude00","type":"symlink","linkName":"\"\\\/\b\f\n\r\t"},
		{"name":"h","type":"hardlink","linkName":"su","modtime":"0001-01-01T00:00:00Z"},
		{"name":"b","type":"block","devMajor":259,"devMinor":4294967295,"size":5}
	]}`), 0, Gzip, Limits{}.withDefaults())
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
		ix, err := parseTOC(b, 1000, Gzip, Limits{}.withDefaults())
		if err != nil {
			return
		}
		checkTOC(t, ix, 1000)
		roundTrip(t, ix)
	})
}
