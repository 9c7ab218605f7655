package erofs_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/pexfs/pex/lazy/tree"
)

// randomLayers makes layers that have everything, with sizes at the edges of what the rules tell apart.
func randomLayers(seed uint64) [][]tree.Entry {
	r := rand.New(rand.NewPCG(seed, 1))
	pick := func(from ...int) int { return from[r.IntN(len(from))] }
	contentSize := func(number int) int64 {
		return []int64{1, 4095, 4096, 4097, 10_000, 2*mib - 1, 2 * mib, 2*mib + 1, 5 * mib, 9 * gib}[number%1000%10]
	}
	var layers [][]tree.Entry
	var lower []string // names of lower layers
	for layer := range 1 + r.IntN(4) {
		var entries []tree.Entry
		dirs, files := []string{""}, []string{}
		for k := range pick(0, 5, 30, 300) {
			parent := dirs[r.IntN(len(dirs))]
			if r.IntN(3) == 0 {
				parent = dirs[len(dirs)-1]
			}
			name := fmt.Sprintf("%c%d.%d", "!+-.09az~"[r.IntN(9)], layer, k)
			if r.IntN(4) == 0 {
				name += strings.Repeat("n", r.IntN(256-len(name)))
			}
			if len(lower) > 0 && r.IntN(8) == 0 {
				// what is in a lower layer is replaced or hidden
				full := lower[r.IntN(len(lower))]
				at := strings.LastIndexByte(full, '/') + 1
				if lower = slices.DeleteFunc(lower, func(s string) bool { return s == full }); len(full)-at < 200 && r.IntN(2) == 0 {
					entries = append(entries, tree.Entry{Name: full[:at] + ".wh." + full[at:], Type: tree.Regular})
					continue
				}
				parent, name = full[:at], full[at:]
			}
			e := tree.Entry{Name: parent + name, Mode: uint32(r.IntN(0o10000)), UID: r.Uint32(), GID: uint32(r.IntN(100)), Mtime: tree.Time{Sec: r.Int64() >> r.IntN(64), Nsec: uint32(r.IntN(1e9))}}
			for x := range pick(0, 0, 0, 1, 2, 5) {
				value := make([]byte, pick(0, 1, 5, 200, 1000, 3900, 3996, 4000, 5000, 12_000))
				value = value[:max(len(value)-r.IntN(70), 0)]
				for k := range value {
					value[k] = byte(r.Uint32())
				}
				namespace := []string{"user", "trusted", "security", "other", "system"}[r.IntN(5)]
				e.Xattrs = append(e.Xattrs, tree.Xattr{Name: fmt.Sprintf("%s.%s%d", namespace, strings.Repeat("x", r.IntN(30)), x), Value: value})
			}
			if r.IntN(20) == 0 {
				e.Xattrs = append(e.Xattrs, tree.Xattr{Name: "system.posix_acl_access", Value: posixACL(uint32(k))})
			}
			switch r.IntN(8) {
			case 0, 1, 2:
				e.Type, e.Content = tree.Regular, int32(r.IntN(2000))
				e.Size = contentSize(int(e.Content))
				files = append(files, e.Name)
			case 3:
				e.Type = tree.Regular
			case 4:
				e.Type = tree.Dir
				dirs = append(dirs, e.Name+"/")
			case 5:
				e.Type, e.Linkname = tree.Symlink, strings.Repeat("t", 1+pick(r.IntN(50), r.IntN(4095), 3900+r.IntN(195)))
			case 6:
				e.Type, e.Major, e.Minor = []tree.Type{tree.Char, tree.Block, tree.Fifo}[r.IntN(3)], uint32(r.IntN(4096)), uint32(r.IntN(1<<20))
			case 7:
				e.Type = tree.HardLink
				if len(files) == 0 {
					continue
				}
				e.Linkname = files[r.IntN(len(files))]
			}
			entries = append(entries, e)
		}
		layers = append(layers, entries)
		for _, e := range entries {
			if e.Type != tree.Dir && !strings.Contains(e.Name, ".wh.") {
				lower = append(lower, e.Name)
			}
		}
	}
	return layers
}
