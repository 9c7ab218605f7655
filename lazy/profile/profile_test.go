package profile

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func digest(n int) string { return fmt.Sprintf("sha256:%064x", n) }

func example() *Profile {
	return &Profile{
		Image: digest(1), Name: "python3 -c 'import numpy'", Recorded: time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC), Layers: []string{digest(2), digest(3)},
		Touches: []Touch{{Layer: 1, Off: 0, N: 1}, {Layer: 0, Off: 1 << 40, N: math.MaxInt64 - 1<<40, At: 12 * time.Millisecond}},
	}
}

func TestEncode(t *testing.T) {
	p := example()
	b, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"version":1,"image":"sha256:0000000000000000000000000000000000000000000000000000000000000001",` +
		`"name":"python3 -c 'import numpy'","recorded":"2026-01-02T15:04:05Z",` +
		`"layers":["sha256:0000000000000000000000000000000000000000000000000000000000000002","sha256:0000000000000000000000000000000000000000000000000000000000000003"],` +
		`"touches":[[1,0,1,0],[0,1099511627776,9223370937343148031,12]]}`
	if diff := cmp.Diff(want, string(b)); diff != "" {
		t.Error("encoded (-want +got):", diff)
	}
	got, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, got); diff != "" {
		t.Error("decoded (-want +got):", diff)
	}
}

// TestEncodeLong has more touches than a profile may have, and then long ones.
func TestEncodeLong(t *testing.T) {
	p := example()
	for name, c := range map[string]struct {
		touch Touch
		want  func(n int) bool
	}{
		"short": {Touch{N: 1}, func(n int) bool { return n == MaxTouches }},
		"long":  {Touch{Off: 1 << 62, N: 1 << 61, At: math.MaxInt64}, func(n int) bool { return n > MaxTouches/2 && n <= MaxTouches }},
	} {
		t.Run(name, func(t *testing.T) {
			p.Touches = make([]Touch, MaxTouches+1)
			for i := range p.Touches {
				p.Touches[i] = c.touch
			}
			b, err := p.Encode()
			if err != nil || len(b) > MaxSize {
				t.Fatal(len(b), err)
			}
			got, err := Decode(b)
			if err != nil || !c.want(len(got.Touches)) {
				t.Errorf("%d touches, %v", len(got.Touches), err)
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, change := range map[string]func(*encoded){
		"another version":   func(e *encoded) { e.Version = 2 },
		"no image":          func(e *encoded) { e.Image = "" },
		"a tag":             func(e *encoded) { e.Image = "python:3" },
		"upper case":        func(e *encoded) { e.Image = "sha256:" + strings.Repeat("A", 64) },
		"a long name":       func(e *encoded) { e.Name = strings.Repeat("x", MaxName+1) },
		"a layer's path":    func(e *encoded) { e.Layers[0] = "../../x" },
		"many layers":       func(e *encoded) { e.Layers = make([]string, MaxLayers+1) },
		"many touches":      func(e *encoded) { e.Touches = make([][4]int64, MaxTouches+1) },
		"no such layer":     func(e *encoded) { e.Touches[0][0] = 2 },
		"a negative layer":  func(e *encoded) { e.Touches[0][0] = -1 },
		"a negative offset": func(e *encoded) { e.Touches[0][1] = -1 },
		"an empty range":    func(e *encoded) { e.Touches[0][2] = 0 },
		"an overflow":       func(e *encoded) { e.Touches[0][1], e.Touches[0][2] = math.MaxInt64, 1 },
		"before the start":  func(e *encoded) { e.Touches[0][3] = -1 },
		"after time's end":  func(e *encoded) { e.Touches[0][3] = math.MaxInt64 },
	} {
		t.Run(name, func(t *testing.T) {
			b, err := example().Encode()
			if err != nil {
				t.Fatal(err)
			}
			var e encoded
			if err := json.Unmarshal(b, &e); err != nil {
				t.Fatal(err)
			}
			change(&e)
			if b, err = json.Marshal(e); err != nil {
				t.Fatal(err)
			}
			if p, err := Decode(b); !errors.Is(err, ErrInvalid) {
				t.Errorf("%+v, %v", p, err)
			}
		})
	}
	for _, s := range []string{"", "{}", "[]", "null", `{"version":1}`, strings.Repeat(" ", MaxSize+1), `{"version":1,"touches":[[1,2,3]]}`} {
		if p, err := Decode([]byte(s)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.40q: %+v, %v", s, p, err)
		}
	}
}

// FuzzDecode holds that what is read is written the same again, and within the limits.
func FuzzDecode(f *testing.F) {
	b, err := example().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"image":"` + digest(0) + `","touches":[[0,0,0,0]]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Decode(data)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Error(err)
			}
			return
		}
		for _, touch := range p.Touches {
			if p.Layers[touch.Layer] == "" || touch.Off < 0 || touch.N <= 0 || touch.Off+touch.N < 0 || touch.At < 0 {
				t.Errorf("touch %+v", touch)
			}
		}
		b, err := p.Encode()
		if err != nil {
			return // of the year 10000, in UTC
		}
		again, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		p.Recorded = p.Recorded.UTC().Truncate(time.Second)
		if len(again.Touches) < len(p.Touches) {
			p.Touches = p.Touches[:len(again.Touches)]
		}
		if again.Image != p.Image || again.Name != p.Name || !again.Recorded.Equal(p.Recorded) || len(again.Touches) != len(p.Touches) {
			t.Errorf("%+v became %+v", p, again)
		}
	})
}

func TestName(t *testing.T) {
	long := strings.Repeat("ä", MaxName)
	for _, c := range []struct {
		argv []string
		want string
	}{
		{nil, ""},
		{[]string{"/bin/true"}, "/bin/true"},
		{[]string{"python3", "-c", "import numpy"}, "python3 -c 'import numpy'"},
		{[]string{"a", ""}, "a ''"},
		{[]string{"it's", "$x", "a\nb"}, "'it'\\''s' '$x' 'a\nb'"},
		{[]string{"\xff"}, "'\ufffd'"},
	} {
		if got := Name(c.argv); got != c.want {
			t.Errorf("%q is named %q, want %q", c.argv, got, c.want)
		}
	}
	a, b := Name([]string{long, "a"}), Name([]string{long, "b"})
	if a == b || len(a) > MaxName || len(b) > MaxName || !strings.HasPrefix(a, "'ää") {
		t.Errorf("long names are %q and %q", a, b)
	}
}
