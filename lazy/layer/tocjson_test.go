package layer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pexfs/pex/lazy/tree"
)

// plainEntry is a tocEntry that can be compared.
type plainEntry struct {
	Name, Link, Type                                                                           string
	Size, Mode, UID, GID, DevMajor, DevMinor, Offset, EndOffset, Inner, ChunkOffset, ChunkSize int64
	ModTime, Digest, ChunkDigest, ChunkType                                                    string
	Xattrs                                                                                     []tree.Xattr
}

func scanned(r io.Reader) (version int64, all []plainEntry, err error) {
	version, err = scanTOC(r, func(e *tocEntry) error {
		all = append(all, plainEntry{
			string(e.name), string(e.link), string(e.typ),
			e.size, e.mode, e.uid, e.gid, e.devMajor, e.devMinor, e.offset, e.endOffset, e.inner, e.chunkOffset, e.chunkSize,
			string(e.modTime), string(e.digest), string(e.chunkDigest), string(e.chunkType), e.xattrs,
		})
		return nil
	})
	return version, all, err
}

// decoded is what encoding/json makes of it, with keys that match exactly.
func decoded(b []byte) (version int64, all []plainEntry, err error) {
	var top map[string]json.RawMessage
	if err := json.Unmarshal(b, &top); err != nil {
		return 0, nil, err
	}
	if top == nil {
		return 0, nil, fmt.Errorf("null")
	}
	field := func(m map[string]json.RawMessage, key string, v any) {
		if raw, ok := m[key]; ok && err == nil {
			err = json.Unmarshal(raw, v)
		}
	}
	var raw []map[string]json.RawMessage
	field(top, "version", &version)
	field(top, "entries", &raw)
	for _, m := range raw {
		var e plainEntry
		for key, v := range map[string]any{
			"name": &e.Name, "linkName": &e.Link, "type": &e.Type, "size": &e.Size, "mode": &e.Mode, "uid": &e.UID, "gid": &e.GID,
			"devMajor": &e.DevMajor, "devMinor": &e.DevMinor, "offset": &e.Offset, "endOffset": &e.EndOffset, "innerOffset": &e.Inner,
			"chunkOffset": &e.ChunkOffset, "chunkSize": &e.ChunkSize, "modtime": &e.ModTime, "digest": &e.Digest,
			"chunkDigest": &e.ChunkDigest, "chunkType": &e.ChunkType,
		} {
			field(m, key, v)
		}
		var xattrs map[string][]byte
		field(m, "xattrs", &xattrs)
		for k, v := range xattrs {
			e.Xattrs = append(e.Xattrs, tree.Xattr{Name: k, Value: v})
		}
		slices.SortFunc(e.Xattrs, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
		all = append(all, e)
	}
	return version, all, err
}

func TestScanTOC(t *testing.T) {
	for _, tt := range []struct{ name, in string }{
		{"empty", `{}`},
		{"spaces", " {\t\"version\" :\n1 , \"entries\":\r[ ] } "},
		{"all fields", `{"version":1,"entries":[{"name":"a","type":"reg","size":1,"modtime":"t","linkName":"l","mode":2,"uid":3,"gid":4,"userName":"u","offset":5,"endOffset":6,"innerOffset":7,"devMajor":8,"devMinor":9,"xattrs":{"b":"AA==","a":"","b":"AQ=="},"digest":"d","chunkOffset":10,"chunkSize":11,"chunkDigest":"e","chunkType":"f","accesstime":null}]}`},
		{"nulls", `{"version":null,"entries":[null,{"name":null,"size":null,"xattrs":null},{"xattrs":{"a":null}}]}`},
		{"keys again", `{"entries":[{"name":"a","name":"b","xattrs":{"x":"AA=="},"xattrs":{"y":"AA=="}}]}`},
		{"other letters' case", `{"Version":2,"entries":[{"NAME":"a","linkname":"b"}]}`},
		{"escapes", `{"entries":[{"name":"\"\\\/\b\f\n\r\t\u0041\u00e4\u20AC\ud83d\ude00","n\u0061me":"z"}]}`},
		{"surrogates", `{"entries":[{"name":"\ud83d"},{"name":"\ud83dx"},{"name":"\ud83d\u0041"},{"name":"\ude00\ud83d"},{"name":"\ud83d\ud83d\ude00"},{"name":"\ud83d\n"}]}`},
		{"not UTF-8", "{\"entries\":[{\"name\":\"\xff\xc3\"},{\"na\xffme\":\"\xe2\x82\"}]}"},
		{"least and greatest", `{"entries":[{"size":-9223372036854775808,"mode":9223372036854775807,"uid":-0}]}`},
		{"beyond 64 bits", `{"entries":[{"size":9223372036854775808}]}`},
		{"far beyond 64 bits", `{"entries":[{"size":99999999999999999999999}]}`},
		{"fraction", `{"entries":[{"size":1.0}]}`},
		{"exponent", `{"entries":[{"size":1e3}]}`},
		{"zeros before", `{"entries":[{"size":01}]}`},
		{"sign alone", `{"entries":[{"size":-}]}`},
		{"space behind the sign", `{"entries":[{"size":- 1}]}`},
		{"string for a number", `{"entries":[{"size":"1"}]}`},
		{"number for a string", `{"entries":[{"name":1}]}`},
		{"skipped numbers", `{"x":[0,-0,1.5,-1.5e+10,1E-1,0e0]}`},
		{"bad skipped number", `{"x":1.}`},
		{"bad exponent", `{"x":1e}`},
		{"skipped words", `{"x":[true,false,null]}`},
		{"bad word", `{"x":nul}`},
		{"word too long", `{"x":nullx}`},
		{"comma at the end", `{"entries":[{"name":"a",}]}`},
		{"comma at the start", `{"entries":[,]}`},
		{"no colon", `{"entries" []}`},
		{"no value", `{"x":}`},
		{"control character", "{\"x\":\"\x01\"}"},
		{"control character behind an escape", "{\"x\":\"\\n\x01\"}"},
		{"bad escape", `{"x":"\x"}`},
		{"bad hexadecimal", `{"x":"\u00g0"}`},
		{"escape cut", `{"x":"\u00`},
		{"backslash at the end", `{"x":"\`},
		{"string cut", `{"x":"ä`},
		{"bytes behind", `{}{}`},
		{"null", `null`},
		{"nothing", ``},
		{"bad base64", `{"entries":[{"xattrs":{"a":"A"}}]}`},
		{"numbers for base64", `{"entries":[{"xattrs":{"a":[1]}}]}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "numbers for base64" { // encoding/json takes it; nobody writes it
				if _, _, err := scanned(strings.NewReader(tt.in)); err == nil {
					t.Error("no error")
				}
				return
			}
			compareTOC(t, []byte(tt.in), true)
		})
	}
}

// compareTOC compares the scanner with encoding/json. both says that it must take all that encoding/json does.
func compareTOC(t *testing.T, b []byte, both bool) {
	t.Helper()
	version, got, err := scanned(bytes.NewReader(b))
	if v, all, slowErr := scanned(iotest.OneByteReader(bytes.NewReader(b))); fmt.Sprint(err) != fmt.Sprint(slowErr) || err == nil && (v != version || !cmp.Equal(got, all)) {
		t.Fatalf("%q\nread byte by byte gives version %d, %d entries, error %v; at once %d, %d, %v", b, v, len(all), slowErr, version, len(got), err)
	}
	wantVersion, want, wantErr := decoded(b)
	if err == nil && wantErr != nil || both && err != nil && wantErr == nil {
		t.Fatalf("%q\nerror %v, of encoding/json %v", b, err, wantErr)
	}
	if err != nil {
		return
	}
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" || version != wantVersion {
		t.Fatalf("%q\nversion %d, want %d; entries (-encoding/json +got)\n%s", b, version, wantVersion, d)
	}
}

// TestScanTOCWindow scans much more than is in memory at once, with values that begin in one window and end in another, and some that are
// larger than a window.
func TestScanTOCWindow(t *testing.T) {
	var s strings.Builder
	s.WriteString(`{"before":"` + strings.Repeat("b", 3*window) + `","entries":[`)
	for i := range 4000 {
		if i > 0 {
			s.WriteString(" ,\n")
		}
		long := i * 7 % 501
		if i%1000 == 999 {
			long = window + i
		}
		fmt.Fprintf(&s, `{"name":"n%d\u00e4%s","size":%d,"x":[true,-1.5e+30,{"y":"%s"}],"linkName":"ä%s","mode":null,"xattrs":{"user.%d":"AAAA"}}`,
			i, strings.Repeat("\\/", i%97), i, strings.Repeat("z", long), strings.Repeat("l", i%61), i)
	}
	s.WriteString(`],"version":1,"behind":[1,2,3]}`)
	compareTOC(t, []byte(s.String()), true)
	for _, cut := range []int{1, window, 5 * window} { // errors tell the place in the whole
		bad := s.String()[:s.Len()-cut] + "\x01"
		_, _, err := scanned(strings.NewReader(bad))
		if want := fmt.Sprintf("JSON at byte %d:", len(bad)-1); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%d bytes cut: %v, want %s", cut, err, want)
		}
	}
}

func TestScanTOCUnreadable(t *testing.T) {
	broken := errors.New("broken")
	for _, b := range []string{"", `{"entries":[{"na`, `{"entries":[{"name":"a"}`, `{"entries":[]}`} {
		_, _, err := scanned(io.MultiReader(strings.NewReader(b), iotest.ErrReader(broken)))
		if err != broken {
			t.Errorf("%q: %v, want %v", b, err, broken)
		}
	}
}

// FuzzScanTOC compares with encoding/json what the scanner takes.
func FuzzScanTOC(f *testing.F) {
	f.Add([]byte(`{"version":1,"entries":[{"name":"a\u00e4","type":"reg","size":1,"mode":-2,"xattrs":{"b":"AA==","a":"","b":null},"x":[1.5e3,true,{}]},null]}`))
	f.Add([]byte(`{"entries":[{"name":"\ud83d\ude00\ud83d","offset":5,"innerOffset":7,"chunkType":"zeros"}],"z":{"y":["\n"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) { compareTOC(t, b, false) })
}

func BenchmarkScanTOC(b *testing.B) {
	var s strings.Builder
	s.WriteString("{\n\t\"version\": 1,\n\t\"entries\": [\n")
	for i := range 67_000 {
		if i > 0 {
			s.WriteString(",\n")
		}
		fmt.Fprintf(&s, "\t\t{\n\t\t\t\"name\": \"usr/share/some/directory/file%d.txt\",\n\t\t\t\"type\": \"reg\",\n\t\t\t\"size\": 1234,\n\t\t\t\"modtime\": \"2021-01-01T00:00:00Z\",\n\t\t\t\"mode\": 33188,\n\t\t\t\"offset\": %d,\n\t\t\t\"digest\": %q,\n\t\t\t\"chunkDigest\": %q\n\t\t}",
			i, i*600+1, digestOf([]byte{byte(i)}), digestOf([]byte{byte(i)}))
	}
	s.WriteString("\n\t]\n}")
	raw := []byte(s.String())
	b.Run("index", func(b *testing.B) {
		b.SetBytes(int64(len(raw)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := parseTOC(bytes.NewReader(raw), int64(len(raw)), 1<<40, Gzip, Limits{}.withDefaults()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("encoding json", func(b *testing.B) {
		b.SetBytes(int64(len(raw)))
		b.ReportAllocs()
		for b.Loop() {
			var toc struct {
				Entries []struct {
					Name, Type, ModTime, Digest, ChunkDigest string
					Size, Mode, Offset                       int64
				}
			}
			if err := json.Unmarshal(raw, &toc); err != nil {
				b.Fatal(err)
			}
		}
	})
}
