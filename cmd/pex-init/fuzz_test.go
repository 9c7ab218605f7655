//go:build linux

package main

import (
	"strconv"
	"strings"
	"testing"
)

// FuzzConfig reads kernel command lines. What is accepted can be acted on: a root that is mounted from a device or a tag, names that fit
// into their files, and a table for the device mapper in which no word is another.
func FuzzConfig(f *testing.F) {
	root := strings.Repeat("1f", 32)
	for _, s := range []string{
		"console=ttyS0 pex.root=virtiofs:pexroot pex.hostname=box quiet",
		"pex.root=pmem:/dev/pmem0 pex.readonly pex.ip=10.0.2.15/24 pex.gateway=10.0.2.2 pex.dns=10.0.2.3,fd00::3",
		"pex.root=blk:/dev/vda pex.root=virtiofs:x",
		"pex.root=verity:/dev/vda:/dev/vdb:1:" + root,
		"pex.root=verity:/dev/vda:/dev/vdb:281474976710656:" + strings.ToUpper(root) + " pex.unknown",
		"pex.root pex.root= pex.root=: pex.hostname=a/b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, cmdline string) {
		c, err := parseConfig(cmdline)
		if err != nil {
			return
		}
		if c.source == "" || c.rootKind != "virtiofs" && !strings.HasPrefix(c.source, "/dev/") || strings.ContainsAny(c.source, " \t\n") {
			t.Errorf("root %s from %q", c.rootKind, c.source)
		}
		if c.hostname == "" || len(c.hostname) > 64 || strings.ContainsAny(c.hostname, "/ \n") {
			t.Errorf("host name %q", c.hostname)
		}
		for _, a := range []bool{!c.ip.IsValid() || c.ip.Addr().Is4(), !c.gateway.IsValid() || c.gateway.Is4()} {
			if !a {
				t.Errorf("address %v by %v", c.ip, c.gateway)
			}
		}
		if got := strings.Count(resolvConf(c), "\n"); got != len(c.dns) {
			t.Errorf("%d lines for name servers %v", got, c.dns)
		}
		if got := strings.Count(hosts(c), "\n"); got != 7 {
			t.Errorf("%d lines in hosts: %q", got, hosts(c))
		}
		if c.rootKind != "verity" {
			return
		}
		words := strings.Fields(c.verity.table(c.source))
		if len(words) != 10 || words[1] != c.source || words[2] != c.verity.hashes || words[8] != c.verity.root || len(c.verity.root) != 64 {
			t.Fatalf("table %q", words)
		}
		if n, err := strconv.ParseInt(words[5], 10, 64); err != nil || n != c.verity.blocks || n < 1 || n > 1<<48 {
			t.Errorf("%d blocks, in the table %s", c.verity.blocks, words[5])
		}
	})
}
