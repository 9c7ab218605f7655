package tree_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pexfs/pex/lazy/tree"
	"github.com/pexfs/pex/lazy/tree/treetest"
)

// Attributes as cases have them: an access control list of user 1000 and group 5, and capabilities of the three versions.
const (
	listAttr  = `"\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x00\x00\x08\x00\x05\x00\x05\x00\x00\x00\x10\x00\x06\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"`
	emptyList = `"\x02\x00\x00\x00"`
	capFirst  = `"\x01\x00\x00\x01\x00\x04\x00\x00\x00\x00\x00\x00"`
	capSecond = `"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"`
	capThird  = `"\x00\x00\x00\x03\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xe8\x03\x00\x00"`
)

func TestShift(t *testing.T) {
	for _, c := range []struct {
		name      string
		n         uint32
		text      string
		want      string
		unchanged bool
	}{
		{name: "all types", n: 100000, text: "dir d 755 uid=1 gid=2\nfile d/f 4755 x uid=3 mtime=4\nlink l d/f\nsymlink s t gid=5\nchar c 600 1:3\nfifo p 600 uid=65534 gid=65534",
			want: `/ dir 0755 uid=100000 gid=100000
/c char 0600 1:3 uid=100000 gid=100000
/d dir 0755 uid=100001 gid=100002
/d/f file 4755 x uid=100003 gid=100000 mtime=4 nlink=2
/l = /d/f
/p fifo 0600 uid=165534 gid=165534
/s symlink t uid=100000 gid=100005
`},
		{name: "by nothing", n: 0, text: "file f 644 uid=4294967294 gid=4294967294 xattr=security.capability:broken",
			want: "/ dir 0755\n/f file 0644 uid=4294967294 gid=4294967294 xattr=security.capability:broken\n", unchanged: true},
		{name: "nobody to the last id", n: 4294901760, text: "file f 644 uid=65534 gid=65534",
			want: "/ dir 0755 uid=4294901760 gid=4294901760\n/f file 0644 uid=4294967294 gid=4294967294\n"},
		{name: "root to the last id", n: 4294967294, text: "file f 644",
			want: "/ dir 0755 uid=4294967294 gid=4294967294\n/f file 0644 uid=4294967294 gid=4294967294\n"},
		{name: "access control lists", n: 65536, text: "dir d 755 xattr=system.posix_acl_default:" + listAttr + " xattr=system.posix_acl_access:" + emptyList,
			want: "/ dir 0755 uid=65536 gid=65536\n/d dir 0755 uid=65536 gid=65536 xattr=system.posix_acl_access:" + `"\x02\x00\x00\x00" xattr=system.posix_acl_default:` +
				`"\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x01\x00\b\x00\x05\x00\x05\x00\x01\x00\x10\x00\x06\x00\xff\xff\xff\xff \x00\x00\x00\xff\xff\xff\xff"` + "\n"},
		{name: "capabilities, version 1", n: 65536, text: "file f 755 xattr=security.capability:" + capFirst,
			want: "/ dir 0755 uid=65536 gid=65536\n/f file 0755 uid=65536 gid=65536 xattr=security.capability:" +
				`"\x01\x00\x00\x03\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00"` + "\n"},
		{name: "capabilities, version 2", n: 65536, text: "file f 755 xattr=security.capability:" + capSecond,
			want: "/ dir 0755 uid=65536 gid=65536\n/f file 0755 uid=65536 gid=65536 xattr=security.capability:" +
				`"\x01\x00\x00\x03\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00"` + "\n"},
		{name: "capabilities, version 3", n: 65536, text: "file f 755 xattr=security.capability:" + capThird,
			want: "/ dir 0755 uid=65536 gid=65536\n/f file 0755 uid=65536 gid=65536 xattr=security.capability:" +
				`"\x00\x00\x00\x03\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xe8\x03\x01\x00"` + "\n"},
		{name: "other attributes", n: 1, text: `file f 644 xattr=user.a:"\x00\xff" xattr=trusted.b:1 xattr=security.selinux:label`,
			want: "/ dir 0755 uid=1 gid=1\n/f file 0644 uid=1 gid=1 xattr=security.selinux:label xattr=trusted.b:1 xattr=user.a:\"\\x00\\xff\"\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			layers := stack(t, c.text)
			before := mustBuild(t, layers)
			listed := treetest.List(before, layers.Content)
			after, err := tree.Shift(before, c.n)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, treetest.List(after, layers.Content)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			if d := cmp.Diff(listed, treetest.List(before, layers.Content)); d != "" {
				t.Errorf("the tree that was shifted: -before +after:\n%s", d)
			}
			if (before == after) != c.unchanged {
				t.Errorf("a new tree: %v", before != after)
			}
		})
	}
}

// TestShiftTwice checks that shifts add up.
func TestShiftTwice(t *testing.T) {
	c := stack(t, "file f 755 x uid=7 gid=8 xattr=security.capability:"+capThird+" xattr=system.posix_acl_access:"+listAttr)
	whole, err := tree.Shift(mustBuild(t, c), 300)
	if err != nil {
		t.Fatal(err)
	}
	part, err := tree.Shift(mustBuild(t, c), 100)
	if err == nil {
		part, err = tree.Shift(part, 200)
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(treetest.List(whole, c.Content), treetest.List(part, c.Content)); d != "" {
		t.Errorf("-at once +in parts:\n%s", d)
	}
}

func TestShiftErrors(t *testing.T) {
	attr := func(name, value string) string { return fmt.Sprintf("file d/f 644 xattr=%s:%q", name, value) }
	list := func(rest string) string { return "\x02\x00\x00\x00" + rest }
	const access, capability = "system.posix_acl_access", "security.capability"
	deep := strings.Repeat("d/", 2047)
	for _, c := range []struct {
		name string
		n    uint32
		text string
		want string
	}{
		{"user", 4294901761, "file d/f 644 uid=65534", `shifting the ids of "/d/f" by 4294901761: the user id 65534 would be beyond 4294967294`},
		{"group", 4294901761, "file d/f 644 gid=65534", `shifting the ids of "/d/f" by 4294901761: the group id 65534 would be beyond 4294967294`},
		{"the root", 4294967295, "file f 644", `shifting the ids of "/" by 4294967295: the user id 0 would be beyond 4294967294`},
		{"the last id", 1, "file f 644 gid=4294967294", `shifting the ids of "/f" by 1: the group id 4294967294 would be beyond 4294967294`},
		{"deep", 1, "symlink " + deep + "s x gid=4294967294", `shifting the ids of "/` + deep + `s" by 1: the group id 4294967294 would be beyond 4294967294`},
		{"first name of a link", 1, "file z 644 uid=4294967294\nlink d/b z", `shifting the ids of "/z" by 1: the user id 4294967294 would be beyond 4294967294`},
		{"id in a list", 1, attr(access, list("\x02\x00\x06\x00\xfe\xff\xff\xff")),
			`shifting the ids of "/d/f" by 1: attribute system.posix_acl_access: the id 4294967294 would be beyond 4294967294`},
		{"list without a version", 1, attr(access, "\x02\x00\x00"), `shifting the ids of "/d/f" by 1: attribute system.posix_acl_access: an access control list of 3 bytes`},
		{"list cut off", 1, attr(access, list("\x02\x00\x06\x00\x01\x00\x00")), `shifting the ids of "/d/f" by 1: attribute system.posix_acl_access: an access control list of 11 bytes`},
		{"version of a list", 1, attr(access, "\x01\x00\x00\x00"), `shifting the ids of "/d/f" by 1: attribute system.posix_acl_access: an access control list of version 1, not 2`},
		{"tag of a list", 1, attr(access, list("\x03\x00\x06\x00\x01\x00\x00\x00")), `shifting the ids of "/d/f" by 1: attribute system.posix_acl_access: an access control list with the unknown tag 0x3`},
		{"empty capabilities", 1, attr(capability, ""), `shifting the ids of "/d/f" by 1: attribute security.capability: file capabilities of 0 bytes`},
		{"capabilities cut off", 1, attr(capability, "\x00\x00\x00\x02"+strings.Repeat("\x00", 15)),
			`shifting the ids of "/d/f" by 1: attribute security.capability: file capabilities of version 2 with 19 bytes, not 20`},
		{"version of capabilities", 1, attr(capability, "\x00\x00\x00\x04"+strings.Repeat("\x00", 20)),
			`shifting the ids of "/d/f" by 1: attribute security.capability: file capabilities of the unknown version 4`},
		{"flags of capabilities", 1, attr(capability, "\x02\x00\x00\x02"+strings.Repeat("\x00", 16)),
			`shifting the ids of "/d/f" by 1: attribute security.capability: file capabilities with unknown flags`},
		{"root id of capabilities", 1, attr(capability, "\x00\x00\x00\x03"+strings.Repeat("\x00", 16)+"\xfe\xff\xff\xff"),
			`shifting the ids of "/d/f" by 1: attribute security.capability: the root id 4294967294 would be beyond 4294967294`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := tree.Shift(mustBuild(t, stack(t, c.text)), c.n); err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}
