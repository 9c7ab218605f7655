//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const (
	testPasswd = "root:x:0:0:root:/root:/bin/sh\n" +
		"\n# comment\n:x:5:5::/:\nbroken\nbad:x:many:1::/:\nhuge:x:4294967296:1::/:\nneg:x:-1:1::/:\n" +
		"www:x:33:34:web:/var/www:/bin/false\r\n" +
		"www:x:99:99::/second:\n" +
		"short:x:40:41\n" +
		"rel:x:42:42::home:\n" +
		"1000:x:50:51::/named:\n" +
		"big:x:2147483647:2147483647::/big:"
	testGroup = "root:x:0:\nwww:x:34:\nextra:x:60:www,other\nmore:x:61:other,www\nbad:x:x:www\nbroken:x\nlast:x:62:www2"
)

func TestLookUpUser(t *testing.T) {
	for _, tt := range []struct {
		spec string
		want user
	}{
		{"", user{0, 0, nil, "/root"}},
		{"root", user{0, 0, nil, "/root"}},
		{"0", user{0, 0, nil, "/root"}},
		{"www", user{33, 34, []uint32{60, 61}, "/var/www"}},
		{"33", user{33, 34, []uint32{60, 61}, "/var/www"}},
		{"99", user{99, 99, []uint32{60, 61}, "/second"}},
		{"www:", user{33, 34, []uint32{60, 61}, "/var/www"}},
		{"www:extra", user{33, 60, nil, "/var/www"}},
		{"www:7777", user{33, 7777, nil, "/var/www"}},
		{":extra", user{0, 60, nil, "/root"}},
		{"short", user{40, 41, nil, "/"}},
		{"rel", user{42, 42, nil, "/"}},
		{"1000", user{1000, 0, nil, "/"}},
		{"1000:1001", user{1000, 1001, nil, "/"}},
		{"big", user{2147483647, 2147483647, nil, "/big"}},
	} {
		got, err := lookUpUser(tt.spec, testPasswd, testGroup)
		if err != nil {
			t.Errorf("%q: %v", tt.spec, err)
		}
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(user{})); diff != "" {
			t.Errorf("%q: %s", tt.spec, diff)
		}
	}
	for spec, want := range map[string]string{
		"nobody":     "unable to find user nobody: no matching entries in passwd file",
		"bad":        "unable to find user bad: no matching entries in passwd file",
		"huge":       "unable to find user huge: no matching entries in passwd file",
		"neg":        "unable to find user neg: no matching entries in passwd file",
		"-1":         "unable to find user -1: no matching entries in passwd file",
		"2147483648": "unable to find user 2147483648: no matching entries in passwd file",
		"www:none":   "unable to find group none: no matching entries in group file",
		"0:a:b":      "unable to find group a:b: no matching entries in group file",
	} {
		if u, err := lookUpUser(spec, testPasswd, testGroup); err == nil || err.Error() != want {
			t.Errorf("%q: %+v, %v", spec, u, err)
		}
	}
	if u, err := lookUpUser("", "", ""); err != nil || u.home != "/" || u.uid != 0 {
		t.Errorf("without files: %+v, %v", u, err)
	}
}

func FuzzLookUpUser(f *testing.F) {
	f.Add("www:extra", testPasswd, testGroup)
	f.Add("33", testPasswd, testGroup)
	f.Add(":", "", "::::")
	f.Fuzz(func(t *testing.T, spec, passwd, group string) {
		u, err := lookUpUser(spec, passwd, group)
		if err != nil {
			return
		}
		if u.uid > 1<<31-1 || u.gid > 1<<31-1 || !strings.HasPrefix(u.home, "/") || len(u.groups) > maxGroups {
			t.Errorf("%+v", u)
		}
	})
}

func TestReadAccounts(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, content := range map[string]string{"good": "a:b\n", "long": strings.Repeat("x", maxAccounts+1)} {
		if err := os.WriteFile(path(name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(path("fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"good": "a:b\n", "missing": "", "fifo": ""} {
		if got, err := readAccounts(path(name)); got != want || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if got, err := readAccounts(dir); got != "" || err != nil {
		t.Errorf("folder: %q, %v", got, err)
	}
	if _, err := readAccounts(path("long")); err == nil {
		t.Error("no error for a file that is too long")
	}
}
