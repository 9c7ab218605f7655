//go:build linux

package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseConfig(t *testing.T) {
	opts := cmp.Options{
		cmp.AllowUnexported(config{}, verity{}),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
	root := strings.Repeat("1f", 32)
	for _, tt := range []struct {
		in   string
		want config
	}{
		{"console=ttyS0 quiet pex.root=virtiofs:tag\n", config{rootKind: "virtiofs", source: "tag", hostname: "pex"}},
		{"pex.root=pmem:/dev/pmem0 pex.readonly pex.hostname=box panic=-1",
			config{rootKind: "pmem", source: "/dev/pmem0", readonly: true, hostname: "box"}},
		{"pex.root=blk:/dev/vdb pex.readahead=256", config{rootKind: "blk", source: "/dev/vdb", ahead: 256, hostname: "pex"}},
		{"pex.root=blk:/dev/vda pex.ip=10.0.2.15/24 pex.gateway=10.0.2.2 pex.dns=10.0.2.3,fd00::3", config{
			rootKind: "blk", source: "/dev/vda", hostname: "pex", ip: netip.MustParsePrefix("10.0.2.15/24"),
			gateway: netip.MustParseAddr("10.0.2.2"), dns: []netip.Addr{netip.MustParseAddr("10.0.2.3"), netip.MustParseAddr("fd00::3")},
		}},
		{"pex.root=verity:/dev/vda:/dev/vdb:55808:" + root, config{
			rootKind: "verity", source: "/dev/vda", hostname: "pex", verity: verity{hashes: "/dev/vdb", blocks: 55808, root: root},
		}},
	} {
		got, err := parseConfig(tt.in)
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
		}
		if diff := cmp.Diff(tt.want, got, opts); diff != "" {
			t.Errorf("%s: %s", tt.in, diff)
		}
	}
	for _, in := range []string{
		"pex.root=blk:/dev/vda pex.readahead=", "pex.root=blk:/dev/vda pex.readahead=0", "pex.root=blk:/dev/vda pex.readahead=16385",
		"pex.root=blk:/dev/vda pex.readahead=1k", "", "quiet", "pex.root=", "pex.root=nfs:x", "pex.root=pmem:", "pex.root=virtiofs:", "pex.root=blk:vda",
		"pex.root=virtiofs:a pex.unknown=1", "pex.root=virtiofs:a pex.hostname=", "pex.root=virtiofs:a pex.hostname=a/b",
		"pex.root=virtiofs:a pex.hostname=" + strings.Repeat("x", 65), "pex.root=virtiofs:a pex.ip=10.0.0.1",
		"pex.root=virtiofs:a pex.ip=fd00::1/64", "pex.root=virtiofs:a pex.gateway=fd00::1", "pex.root=virtiofs:a pex.dns=",
		"pex.root=virtiofs:a pex.dns=1.2.3.4,x", "pex.root=verity:/dev/vda", "pex.root=verity:vda:/dev/vdb:1:" + root,
		"pex.root=verity:/dev/vda:vdb:1:" + root, "pex.root=verity:/dev/vda:/dev/vdb:0:" + root, "pex.root=verity:/dev/vda:/dev/vdb:x:" + root,
		"pex.root=verity:/dev/vda:/dev/vdb:1:" + root[1:], "pex.root=verity:/dev/vda:/dev/vdb:1:" + root[2:], "pex.root=verity:/dev/vda:/dev/vdb:1:" + root + ":x",
		"pex.root=verity:/dev/vda:/dev/vdb:9223372036854775807:" + root,
	} {
		if c, err := parseConfig(in); err == nil {
			t.Errorf("%q: no error but %+v", in, c)
		}
	}
}

func TestHasDAX(t *testing.T) {
	const mounts = "proc /proc proc rw 0 0\n/dev/pmem0 /lower erofs ro,relatime,user_xattr,acl,cache_strategy=readaround,dax=always 0 0\n" +
		"/dev/vda /other erofs ro,dax=never,x=dax=always 0 0\nbroken\n"
	for dir, want := range map[string]bool{"/lower": true, "/other": false, "/none": false} {
		if got := hasDAX(mounts, dir); got != want {
			t.Errorf("hasDAX(%s) = %v", dir, got)
		}
	}
}

func TestEtc(t *testing.T) {
	c := config{hostname: "box", dns: []netip.Addr{netip.MustParseAddr("10.0.2.3"), netip.MustParseAddr("fd00::3")}}
	if got, want := resolvConf(c), "nameserver 10.0.2.3\nnameserver fd00::3\n"; got != want {
		t.Errorf("resolv.conf: %q", got)
	}
	if got := hosts(c); !strings.HasSuffix(got, "\n127.0.1.1\tbox\n") || !strings.HasPrefix(got, "127.0.0.1\tlocalhost\n") {
		t.Errorf("hosts: %q", got)
	}
	c.ip = netip.MustParsePrefix("10.0.2.15/24")
	if got := hosts(c); !strings.HasSuffix(got, "\n10.0.2.15\tbox\n") {
		t.Errorf("hosts: %q", got)
	}
}
