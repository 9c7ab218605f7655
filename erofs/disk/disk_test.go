package disk_test

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/pexfs/pex/erofs/disk"
)

// TestForms pins where each field lies, by bytes that were written down from erofs_fs.h.
func TestForms(t *testing.T) {
	for _, c := range []struct {
		name   string
		encode func(b []byte)
		want   string
	}{
		{"superblock", (&disk.Super{
			Magic: disk.Magic, Checksum: 0x01020304, FeatureCompat: 3, BlockBits: 12, ExtSlots: 5, RootNid: 0x0607, Inodes: 0x08090a0b0c0d0e0f,
			BuildTime: 0x1011121314151617, BuildTimeNsec: 0x18191a1b, Blocks: 0x1c1d1e1f, MetaBlock: 0x20212223, XattrBlock: 0x24252627,
			UUID: [16]byte{0xa0, 15: 0xaf}, VolumeName: [16]byte{0xb0, 15: 0xbf}, FeatureIncompat: 0x28292a2b,
		}).Encode, "e2e1f5e0" + "04030201" + "03000000" + "0c" + "05" + "0706" + "0f0e0d0c0b0a0908" + "1716151413121110" + "1b1a1918" + "1f1e1d1c" + "23222120" + "27262524" +
			"a00000000000000000000000000000af" + "b00000000000000000000000000000bf" + "2b2a2928" + zeros(44)},
		{"inode", (&disk.Inode{
			Extended: true, Layout: 2, Flags: 1, XattrCount: 0x0102, Mode: 0x0304, Size: 0x05060708090a0b0c, Union: 0x0d0e0f10, Ino: 0x11121314, UID: 0x15161718,
			GID: 0x191a1b1c, Mtime: 0x1d1e1f2021222324, MtimeNsec: 0x25262728, Nlink: 0x292a2b2c,
		}).Encode, "1500" + "0201" + "0403" + "0000" + "0c0b0a0908070605" + "100f0e0d" + "14131211" + "18171615" + "1c1b1a19" + "24232221201f1e1d" + "28272625" + "2c2b2a29" + zeros(16)},
		{"dirent", (&disk.Dirent{Nid: 0x0102030405060708, NameOff: 0x090a, Type: 11}).Encode, "0807060504030201" + "0a09" + "0b" + "00"},
		{"xattr entry", (&disk.XattrEntry{NameLen: 1, Index: 2, ValueLen: 0x0304}).Encode, "01" + "02" + "0403"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bytes.Repeat([]byte{0xee}, len(c.want)/2)
			c.encode(b)
			if got := hex.EncodeToString(b); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func zeros(n int) string { return hex.EncodeToString(make([]byte, n)) }

func TestCompactInode(t *testing.T) {
	b, err := hex.DecodeString("0400" + "0201" + "a481" + "0300" + "0d0c0b0a" + "00000000" + "10000000" + "11000000" + "0a00" + "0b00" + "00000000" + zeros(32))
	if err != nil {
		t.Fatal(err)
	}
	var got disk.Inode
	got.Decode(b)
	want := disk.Inode{Layout: 2, XattrCount: 0x0102, Mode: 0o100644, Nlink: 3, Size: 0x0a0b0c0d, Union: 16, Ino: 17, UID: 10, GID: 11}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got.Len() != disk.InodeCompact {
		t.Errorf("length %d", got.Len())
	}
}

func TestRoundTrips(t *testing.T) {
	super := disk.Super{Magic: 1, Checksum: 2, FeatureCompat: 3, BlockBits: 4, ExtSlots: 5, RootNid: 6, Inodes: 7, BuildTime: 8, BuildTimeNsec: 9, Blocks: 10, MetaBlock: 11,
		XattrBlock: 12, UUID: [16]byte{13}, VolumeName: [16]byte{14}, FeatureIncompat: 15}
	inode := disk.Inode{Extended: true, Layout: 7, Flags: 0xfff, XattrCount: 1, Mode: 2, Size: 1 << 63, Union: 3, Ino: 4, UID: 5, GID: 6, Mtime: 1<<64 - 1, MtimeNsec: 7, Nlink: 8}
	dirent := disk.Dirent{Nid: 1<<64 - 1, NameOff: 65535, Type: 255}
	entry := disk.XattrEntry{NameLen: 255, Index: 255, ValueLen: 65535}
	b := make([]byte, disk.SuperSize)
	var s disk.Super
	super.Encode(b)
	if s.Decode(b); s != super {
		t.Errorf("superblock: %+v", s)
	}
	var i disk.Inode
	inode.Encode(b)
	if i.Decode(b); i != inode {
		t.Errorf("inode: %+v", i)
	}
	var d disk.Dirent
	dirent.Encode(b)
	if d.Decode(b); d != dirent {
		t.Errorf("dirent: %+v", d)
	}
	var x disk.XattrEntry
	entry.Encode(b)
	if x.Decode(b); x != entry {
		t.Errorf("xattr entry: %+v", x)
	}
}

func TestNumbers(t *testing.T) {
	for _, c := range []struct{ major, minor, want uint32 }{
		{0, 0, 0}, {1, 3, 0x103}, {259, 70000, 0x11110370}, {disk.MaxMajor, disk.MaxMinor, 0xffffffff}, {8, 0x12345, 0x12300845},
	} {
		got := disk.Dev(c.major, c.minor)
		if got != c.want {
			t.Errorf("Dev(%d, %d) = %#x, want %#x", c.major, c.minor, got, c.want)
		}
		if major, minor := disk.DevNumbers(got); major != c.major || minor != c.minor {
			t.Errorf("DevNumbers(%#x) = %d, %d", got, major, minor)
		}
	}
	for _, n := range []int{0, 12, 16, 4096, 65532, 262144} {
		i := disk.Inode{XattrCount: disk.XattrCountOf(n)}
		if got := i.XattrLen(); got != int64(n) {
			t.Errorf("attributes of %d bytes: count %d stands for %d", n, i.XattrCount, got)
		}
	}
	if e := (disk.XattrEntry{NameLen: 3, ValueLen: 2}); e.Len() != 12 {
		t.Errorf("length %d", e.Len())
	}
}
