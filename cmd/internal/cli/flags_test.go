package cli

import (
	"math"
	"testing"
)

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{
		"1": 1, "512m": 512 << 20, "1g": 1 << 30, "2G": 2 << 30, "1536MB": 1536 << 20, "10kb": 10 << 10, "7b": 7, "3t": 3 << 40,
		"9223372036854775807": math.MaxInt64, "8388607t": 8388607 << 40,
	} {
		var s, again Size
		if err := s.Set(text); err != nil || s != want {
			t.Errorf("%q = %d, %v, want %d", text, s, err, want)
		}
		if err := again.Set(s.String()); err != nil || again != want {
			t.Errorf("%q, written %s, = %d, %v", text, &s, again, err)
		}
	}
	for _, text := range []string{"", "m", "0", "-1g", "1.5g", "8388608t", "9223372036854775808", "1gg", "1kk", "1bk", "g1", "0x40m", " 1g", "1 g"} {
		var s Size
		if err := s.Set(text); err == nil {
			t.Errorf("%q was taken as %s", text, &s)
		}
	}
}

func TestVerify(t *testing.T) {
	for text, want := range map[string]Verify{"chain": false, "full": true} {
		v := !want
		if err := v.Set(text); err != nil || v != want || v.String() != text {
			t.Errorf("%q = %s, %v", text, &v, err)
		}
	}
	var v Verify
	if err := v.Set(""); err == nil {
		t.Error("an empty word was taken")
	}
}
