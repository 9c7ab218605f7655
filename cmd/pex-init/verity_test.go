//go:build linux

package main

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestVerityTable(t *testing.T) {
	root := strings.Repeat("1f", 32)
	v := verity{hashes: "/dev/vdb", blocks: 55808, root: root}
	want := "1 /dev/vda /dev/vdb 4096 4096 55808 1 sha256 " + root + " -"
	if got := v.table("/dev/vda"); got != want {
		t.Errorf("table %q, want %q", got, want)
	}
}

// TestDMRequest compares with the kernel's structs, field by field.
func TestDMRequest(t *testing.T) {
	e := binary.NativeEndian
	plain := dmRequest("root", 0, nil)
	want := make([]byte, 312)
	e.PutUint32(want, 4)
	e.PutUint32(want[12:], 312)
	e.PutUint32(want[16:], 312)
	copy(want[48:], "root")
	if diff := cmp.Diff(want, plain); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	load := dmRequest("root", dmReadonly, &dmTarget{sectors: 0x1234567890, kind: "verity", params: "1 2 3"})
	want = append(want, make([]byte, 48)...)
	e.PutUint32(want[12:], 360)
	e.PutUint32(want[20:], 1)
	e.PutUint32(want[28:], 1)
	e.PutUint64(want[320:], 0x1234567890)
	copy(want[336:], "verity")
	copy(want[352:], "1 2 3")
	if diff := cmp.Diff(want, load); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	for n := range 20 { // the parameters end with a NUL, in a multiple of 8 bytes
		b := dmRequest("x", 0, &dmTarget{params: strings.Repeat("p", n)})
		if len(b)%8 != 0 || b[len(b)-1] != 0 || len(b) != int(e.Uint32(b[12:])) {
			t.Errorf("%d bytes of parameters: a buffer of %d", n, len(b))
		}
	}
	long := dmRequest(strings.Repeat("n", 300), 0, &dmTarget{kind: strings.Repeat("k", 300)})
	if long[48+127] != 0 || long[312+24+15] != 0 {
		t.Error("a name without its end")
	}
}
