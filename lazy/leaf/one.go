//go:build !amd64

package leaf

const lanes = 1

func sum(*[most * Size]byte, *[most * Block]byte) { panic("one block at once") }
