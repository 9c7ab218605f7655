//go:build linux

package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// config is what the host asks for by kernel parameters.
type config struct {
	rootKind string // "virtiofs", "pmem", "blk" or "verity"
	source   string // tag or device
	verity   verity // what proves it
	readonly bool
	ahead    int // read-ahead of files of the root in KiB; 0: the kernel's own
	hostname string
	ip       netip.Prefix // invalid: no network
	gateway  netip.Addr   // invalid: no route
	dns      []netip.Addr
}

// maxReadAhead bounds read-ahead, in KiB: what is read ahead takes memory.
const maxReadAhead = 16 << 10

// parseConfig takes what begins with "pex." from the kernel's command line. What it doesn't know is an error, so that
// a host never believes in a setting that has no effect.
func parseConfig(cmdline string) (config, error) {
	c := config{hostname: "pex"}
	for word := range strings.FieldsSeq(cmdline) {
		key, ok := strings.CutPrefix(word, "pex.")
		if !ok {
			continue
		}
		key, value, _ := strings.Cut(key, "=")
		var err error
		switch key {
		case "root":
			c.rootKind, c.source, _ = strings.Cut(value, ":")
			switch c.rootKind {
			case "virtiofs":
			case "pmem", "blk":
				if !strings.HasPrefix(c.source, "/dev/") {
					err = fmt.Errorf("not a device")
				}
			case "verity":
				c.source, c.verity, err = parseVerity(c.source)
			default:
				err = fmt.Errorf("unknown kind")
			}
			if c.source == "" && err == nil {
				err = fmt.Errorf("no source")
			}
		case "readonly":
			c.readonly = true
		case "readahead":
			c.ahead, err = strconv.Atoi(value)
			if err != nil || c.ahead < 4 || c.ahead > maxReadAhead {
				err = fmt.Errorf("not a size from 4 to %d KiB", maxReadAhead)
			}
		case "hostname":
			c.hostname = value
			if value == "" || len(value) > 64 || strings.Contains(value, "/") {
				err = fmt.Errorf("not a host name")
			}
		case "ip":
			c.ip, err = netip.ParsePrefix(value)
			if err == nil && !c.ip.Addr().Is4() {
				err = fmt.Errorf("not an IPv4 address")
			}
		case "gateway":
			c.gateway, err = netip.ParseAddr(value)
			if err == nil && !c.gateway.Is4() {
				err = fmt.Errorf("not an IPv4 address")
			}
		case "dns":
			for s := range strings.SplitSeq(value, ",") {
				a, perr := netip.ParseAddr(s)
				if perr != nil {
					err = perr
					break
				}
				c.dns = append(c.dns, a)
			}
		default:
			err = fmt.Errorf("unknown parameter")
		}
		if err != nil {
			return config{}, fmt.Errorf("kernel parameter %s: %w", word, err)
		}
	}
	if c.rootKind == "" {
		return config{}, fmt.Errorf("kernel parameter pex.root is missing")
	}
	return c, nil
}
