package treetest

import (
	"embed"
	"fmt"
	"io"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/pexfs/pex/lazy/tree"
)

//go:embed testdata
var testdata embed.FS

// Case is a stack of layers and what must come of it.
type Case struct {
	Name, Comment string
	Layers        [][]tree.Entry // bottom first
	Contents      [][]Content    // of each layer, by the number that its entries have in tree.Entry.Content
	Want          string         // the tree's listing, as List makes it
	Err           string         // words of the error; where it is not empty, there is no tree
	Ambiguous     []string       // what tree.Tree.Ambiguous has, as text
}

// Content is a file's content: text, and zeros up to its size.
type Content struct {
	Text string
	Size int64 // in bytes
}

// Reader reads the content.
func (c Content) Reader() io.Reader {
	return io.MultiReader(strings.NewReader(c.Text), io.LimitReader(zeros{}, c.Size-int64(len(c.Text))))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Content is a content of the case's own layers, as List wants it.
func (c *Case) Content(ct tree.Content) []byte {
	n := c.Contents[ct.Layer][ct.Index]
	return append([]byte(n.Text), make([]byte, n.Size-int64(len(n.Text)))...)
}

// Cases are all cases, sorted by name.
func Cases(t testing.TB) []Case {
	t.Helper()
	files, err := testdata.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{"127-layers": manyLayers(127), "300-layers": manyLayers(300)}
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), ".txtar"); ok {
			text, err := testdata.ReadFile(path.Join("testdata", f.Name()))
			if err != nil {
				t.Fatal(err)
			}
			texts[name] = string(text)
		}
	}
	var all []Case
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		c, err := Parse(name, texts[name])
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

// Run puts cases through an implementation, each in a subtest. build merges a case's layers; content reads what the tree's contents
// refer to, up to 1 MiB.
func Run(t *testing.T, cases []Case, build func(t *testing.T, c Case) (merged *tree.Tree, content func(tree.Content) []byte, err error)) {
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			merged, content, err := build(t, c)
			switch {
			case c.Err != "" && err == nil:
				t.Fatalf("no error, want one that says %q; the tree is\n%s", c.Err, List(merged, content))
			case c.Err != "" && !strings.Contains(err.Error(), c.Err):
				t.Fatalf("error %q, want one that says %q", err, c.Err)
			case c.Err == "" && err != nil:
				t.Fatal(err)
			case c.Err == "":
				if d := cmp.Diff(c.Want, List(merged, content)); d != "" {
					t.Errorf("%s\n-want +got:\n%s", c.Comment, d)
				}
			}
		})
	}
}

// Parse reads a case in the form that the package's comment describes.
func Parse(name, text string) (Case, error) {
	c := Case{Name: name}
	expanded, err := expand(text)
	if err != nil {
		return c, fmt.Errorf("case %s: %w", name, err)
	}
	ar := txtar.Parse([]byte(expanded))
	c.Comment = strings.TrimSpace(string(ar.Comment))
	p := parser{last: make(map[string]tree.Entry)}
	for _, f := range ar.Files {
		switch data := string(f.Data); f.Name {
		case "want":
			c.Want = data
		case "error":
			c.Err = strings.TrimSpace(data)
		case "ambiguous":
			c.Ambiguous = strings.Split(strings.TrimSpace(data), "\n")
		default:
			entries, contents, err := p.layer(data)
			if err != nil {
				return c, fmt.Errorf("case %s: %s: %w", name, f.Name, err)
			}
			c.Layers = append(c.Layers, entries)
			c.Contents = append(c.Contents, contents)
		}
	}
	return c, nil
}

var repeated = regexp.MustCompile(`\{([^{}*]+)\*([0-9]+)\}`)

// expand repeats what is to be repeated.
func expand(s string) (string, error) {
	const most = 1 << 20
	for {
		m := repeated.FindStringSubmatchIndex(s)
		if m == nil {
			return s, nil
		}
		n, err := strconv.ParseUint(s[m[4]:m[5]], 10, 31)
		if err != nil || int(n)*(m[3]-m[2])+len(s) > most {
			return "", fmt.Errorf("%s makes it longer than %d bytes", s[m[0]:m[1]], most)
		}
		s = s[:m[0]] + strings.Repeat(s[m[2]:m[3]], int(n)) + s[m[1]:]
	}
}

// manyLayers is a stack in which each layer adds a file, takes away the file of the layer before, and gives its own mode to the folder.
func manyLayers(n int) string {
	var b strings.Builder
	b.WriteString("Each layer adds to a folder and takes away what the one before added.\n")
	for i := range n {
		fmt.Fprintf(&b, "-- layer%d --\ndir d 755 mtime=%d\nfile d/%d 644 text%d\nfile d/.wh.%d 644\nfile kept%03d 600 x\n", i, i, i, i, i-1, i)
	}
	b.WriteString("-- want --\n/ dir 0755\n")
	fmt.Fprintf(&b, "/d dir 0755 mtime=%d\n/d/%d file 0644 text%d\n", n-1, n-1, n-1)
	for i := range n {
		fmt.Fprintf(&b, "/kept%03d file 0600 x\n", i)
	}
	return b.String()
}
