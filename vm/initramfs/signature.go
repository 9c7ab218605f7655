package initramfs

import (
	"bytes"
	"encoding/binary"
)

// unsigned cuts off a module's signature, if it has one (Linux: include/linux/module_signature.h): behind the ELF file
// come the signature, 12 bytes whose last 4 are the signature's length, big-endian, and a magic text.
func unsigned(module []byte) []byte {
	const infoSize = 12
	body, ok := bytes.CutSuffix(module, []byte("~Module signature appended~\n"))
	if !ok || len(body) < infoSize {
		return module
	}
	body, info := body[:len(body)-infoSize], body[len(body)-infoSize:]
	n := binary.BigEndian.Uint32(info[8:])
	if uint64(n) > uint64(len(body)) {
		return module
	}
	return body[:len(body)-int(n)]
}
