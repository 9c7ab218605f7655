package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// dialect is how an entry's header is written, "" for PAX. What a dialect can't say is written in PAX.
type dialect string

const (
	pax   dialect = "pax"
	gnu   dialect = "gnu"
	ustar dialect = "ustar"
	v7    dialect = "v7"
)

// sparse is how a file with holes is written: whole, or in one of GNU's forms.
type sparse int

const (
	dense sparse = iota
	sparseGNU
	sparsePAX00
	sparsePAX01
	sparsePAX10
)

const blockSize = 512

// writeTar writes a layer's tar, byte by byte: archive/tar writes neither sparse files nor names that aren't UTF-8.
func writeTar(entries []entry) []byte {
	var b bytes.Buffer
	for _, e := range entries {
		writeEntry(&b, e)
	}
	b.Write(make([]byte, 2*blockSize))
	return b.Bytes()
}

func writeEntry(b *bytes.Buffer, e entry) {
	if e.kind == 'g' {
		record := paxRecord("path", "global") + paxRecord("mtime", "1") + paxRecord("SCHILY.xattr.user.global", "x")
		writeHeader(b, entry{name: "pax_global_header", kind: 'g'}, pax, int64(len(record)), nil)
		padded(b, []byte(record))
		return
	}
	records := map[string]string{}
	for k, v := range e.xattrs {
		records["SCHILY.xattr."+k] = v
	}
	big := max(e.uid, e.gid) > 1<<21-1 || e.mtime.Sec < 0 || e.mtime.Sec >= 1<<33
	d := e.dialect
	if d == "" {
		d = pax
	}
	switch long := len(e.name) > 100 || len(e.link) > 100; {
	case len(records) > 0 || e.mtime.Nsec != 0 || e.sparse >= sparsePAX00:
		d = pax
		if e.sparse == sparseGNU {
			e.sparse = sparsePAX01
		}
	case e.sparse == sparseGNU:
		d = gnu
	case d == ustar && (long || big), d == v7 && (long || big || e.kind > '2' && e.kind != '5'):
		d = pax
	}
	body, size := e.stored()
	if d == gnu {
		for _, l := range []struct {
			kind byte
			s    string
		}{{'K', e.link}, {'L', e.name}} {
			if len(l.s) > 100 {
				writeHeader(b, entry{name: "././@LongLink", kind: l.kind}, gnu, int64(len(l.s)+1), nil)
				padded(b, append([]byte(l.s), 0))
			}
		}
	}
	if d == pax {
		if len(e.name) > 100 || !ascii(e.name) {
			records["path"] = e.name
		}
		if len(e.link) > 100 || !ascii(e.link) {
			records["linkpath"] = e.link
		}
		if e.uid > 1<<21-1 {
			records["uid"] = strconv.FormatUint(uint64(e.uid), 10)
		}
		if e.gid > 1<<21-1 {
			records["gid"] = strconv.FormatUint(uint64(e.gid), 10)
		}
		if e.mtime.Nsec != 0 || e.mtime.Sec < 0 || e.mtime.Sec >= 1<<33 {
			records["mtime"] = paxTime(e.mtime.Sec, e.mtime.Nsec)
		}
	}
	all := ""
	for _, k := range slices.Sorted(maps.Keys(records)) {
		all += paxRecord(k, records[k])
	}
	switch e.sparse {
	case sparsePAX00:
		all += paxRecord("GNU.sparse.size", fmt.Sprint(e.content.size)) + paxRecord("GNU.sparse.numblocks", fmt.Sprint(len(e.content.sparseMap())))
		for _, p := range e.content.sparseMap() {
			all += paxRecord("GNU.sparse.offset", fmt.Sprint(p.off)) + paxRecord("GNU.sparse.numbytes", fmt.Sprint(len(p.b)))
		}
	case sparsePAX01:
		var m []string
		for _, p := range e.content.sparseMap() {
			m = append(m, fmt.Sprint(p.off), fmt.Sprint(len(p.b)))
		}
		all += paxRecord("GNU.sparse.size", fmt.Sprint(e.content.size)) + paxRecord("GNU.sparse.numblocks", fmt.Sprint(len(e.content.sparseMap()))) +
			paxRecord("GNU.sparse.map", strings.Join(m, ",")) + paxRecord("GNU.sparse.name", e.name)
	case sparsePAX10:
		all += paxRecord("GNU.sparse.major", "1") + paxRecord("GNU.sparse.minor", "0") + paxRecord("GNU.sparse.name", e.name) +
			paxRecord("GNU.sparse.realsize", fmt.Sprint(e.content.size))
	}
	if all != "" {
		writeHeader(b, entry{name: "PaxHeaders/x", kind: 'x'}, pax, int64(len(all)), nil)
		padded(b, []byte(all))
	}
	var parts []part
	if e.sparse == sparseGNU {
		e.kind, parts = 'S', e.content.sparseMap()
	}
	writeHeader(b, e, d, size, parts)
	padded(b, body)
}

// sparseMap lists a file's parts as GNU tar does: a hole at the end is followed by a part without bytes.
func (c content) sparseMap() []part {
	if n := len(c.parts); n > 0 && c.parts[n-1].off+int64(len(c.parts[n-1].b)) == c.size {
		return c.parts
	}
	return append(slices.Clone(c.parts), part{off: c.size})
}

// stored is what the tar holds of a file's content.
func (e entry) stored() (body []byte, size int64) {
	if e.kind != '0' {
		return nil, 0
	}
	if e.sparse == dense {
		body = e.content.bytes()
		return body, int64(len(body))
	}
	if e.sparse == sparsePAX10 {
		m := fmt.Sprintf("%d\n", len(e.content.sparseMap()))
		for _, p := range e.content.sparseMap() {
			m += fmt.Sprintf("%d\n%d\n", p.off, len(p.b))
		}
		body = append([]byte(m), make([]byte, -len(m)&(blockSize-1))...)
	}
	for _, p := range e.content.parts {
		body = append(body, p.b...)
	}
	return body, int64(len(body))
}

// writeHeader writes a block in a dialect; for an old sparse file with the map of its parts, in more blocks if need be.
func writeHeader(b *bytes.Buffer, e entry, d dialect, size int64, parts []part) {
	var h [blockSize]byte
	name := e.name
	if d == v7 && e.kind == '5' && !strings.HasSuffix(name, "/") {
		name += "/"
	}
	copy(h[0:100], name)
	number(h[100:108], int64(e.mode))
	number(h[108:116], clip(int64(e.uid), d, 1<<21-1))
	number(h[116:124], clip(int64(e.gid), d, 1<<21-1))
	number(h[124:136], size)
	mtime := e.mtime.Sec
	if d != gnu {
		mtime = max(clip(mtime, d, 1<<33-1), 0)
	}
	number(h[136:148], mtime)
	h[156] = e.kind
	copy(h[157:257], e.link)
	switch d {
	case gnu:
		copy(h[257:], "ustar  \x00")
	case v7:
		if e.kind == '5' || e.kind == '0' {
			h[156] = 0
		}
	default:
		copy(h[257:], "ustar\x0000")
	}
	if d != v7 {
		number(h[329:337], int64(e.major))
		number(h[337:345], int64(e.minor))
	}
	var more []byte
	if e.kind == 'S' {
		number(h[483:495], e.content.size)
		for i, p := range parts {
			at := h[386+24*min(i, 3):]
			if j := i - 4; j >= 0 {
				if j%21 == 0 {
					more = append(more, make([]byte, blockSize)...)
					if j == 0 {
						h[482] = 1
					} else {
						more[len(more)-blockSize-8] = 1
					}
				}
				at = more[len(more)-blockSize+24*(j%21):]
			}
			number(at[:12], p.off)
			number(at[12:24], int64(len(p.b)))
		}
	}
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	b.Write(h[:])
	b.Write(more)
}

// clip is what stands in the header of a number that a PAX record holds.
func clip(n int64, d dialect, most int64) int64 {
	if d != gnu && n > most {
		return 0
	}
	return n
}

// number writes octal digits, or where these don't suffice GNU's base 256.
func number(field []byte, n int64) {
	if s := strconv.FormatInt(n, 8); n >= 0 && len(s) < len(field) {
		copy(field, strings.Repeat("0", len(field)-1-len(s))+s)
		return
	}
	for i := range field {
		shift := 8 * (len(field) - 1 - i)
		field[i] = byte(n >> min(shift, 63))
	}
	field[0] |= 0x80
}

func padded(b *bytes.Buffer, body []byte) {
	b.Write(body)
	b.Write(make([]byte, -len(body)&(blockSize-1)))
}

// paxRecord is "LENGTH KEY=VALUE\n"; the length counts its own digits.
func paxRecord(k, v string) string {
	n := len(k) + len(v) + 3
	n += len(strconv.Itoa(n))
	if s := fmt.Sprintf("%d %s=%s\n", n, k, v); len(s) == n {
		return s
	}
	return fmt.Sprintf("%d %s=%s\n", n+1, k, v)
}

func paxTime(sec, nsec int64) string {
	sign := ""
	if sec < 0 {
		sign, sec, nsec = "-", -sec, -nsec
		if nsec < 0 {
			sec, nsec = sec-1, nsec+1e9
		}
	}
	if nsec == 0 {
		return fmt.Sprintf("%s%d", sign, sec)
	}
	return fmt.Sprintf("%s%d.%09d", sign, sec, nsec)
}

func ascii(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r == 0 || r > math.MaxInt8 })
}
