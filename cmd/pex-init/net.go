//go:build linux

package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// withSocket runs do with a socket for the ioctls of netdevice(7).
func withSocket(do func(fd int) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return do(fd)
}

// linkUp enables a network device.
func linkUp(name string) error {
	err := withSocket(func(fd int) error {
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
			return err
		}
		req.SetUint16(req.Uint16() | unix.IFF_UP)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
	})
	if err != nil {
		return fmt.Errorf("enabling network device %s: %w", name, err)
	}
	return nil
}

// rtentry is what SIOCADDRT takes (Linux: include/uapi/linux/route.h), on 64-bit machines.
type rtentry struct {
	_                     uint64
	dst, gateway, genmask unix.RawSockaddrInet4
	flags                 uint16
	_                     [38]byte
	dev                   *byte
	_                     [24]byte
}

// configureNet gives a network device its address and, if gateway is valid, the default route. As in a container,
// every user may use any port and send echo requests.
func configureNet(name string, addr netip.Prefix, gateway netip.Addr) error {
	err := withSocket(func(fd int) error {
		for _, set := range []struct {
			req  uint
			addr []byte
		}{{unix.SIOCSIFADDR, addr.Addr().AsSlice()}, {unix.SIOCSIFNETMASK, net.CIDRMask(addr.Bits(), 32)}} {
			req, err := unix.NewIfreq(name)
			if err != nil {
				return err
			}
			if err := req.SetInet4Addr(set.addr); err != nil {
				return err
			}
			if err := unix.IoctlIfreq(fd, set.req, req); err != nil {
				return err
			}
		}
		if err := linkUp(name); err != nil {
			return err
		}
		if !gateway.IsValid() {
			return nil
		}
		any4 := unix.RawSockaddrInet4{Family: unix.AF_INET}
		rt := rtentry{dst: any4, genmask: any4, gateway: any4, flags: unix.RTF_UP | unix.RTF_GATEWAY}
		rt.gateway.Addr = gateway.As4()
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&rt))); errno != 0 {
			return fmt.Errorf("adding default route: %w", errno)
		}
		return nil
	})
	for _, s := range [][2]string{{"ip_unprivileged_port_start", "0"}, {"ping_group_range", "0 2147483647"}} {
		if err == nil {
			err = os.WriteFile("/proc/sys/net/ipv4/"+s[0], []byte(s[1]), 0)
		}
	}
	if err != nil {
		return fmt.Errorf("configuring network device %s: %w", name, err)
	}
	return nil
}
