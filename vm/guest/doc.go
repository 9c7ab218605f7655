// Package guest is the protocol between a machine's host and the program that is PID 1 in it, both ends of it: Session
// is the host's, Server the guest's. It runs over any ordered stream of bytes: a virtio-serial port, a socket, a pipe.
// The same frames connect a command with the process that supervises its machine; whoever passes them on uses Conn
// and needs no buffers of its own, since credit is granted from end to end.
//
// # Frames
//
// A frame is a header of 12 bytes and at most MaxPayload bytes. The header, little-endian:
//
//	0  version  1 byte, Version
//	1  type     1 byte
//	2  zero     2 bytes
//	4  id       4 bytes, the process the frame is about; 0 is the machine itself
//	8  length   4 bytes, of the payload
//
// From the guest, in this order: HELLO once, then READY or FAIL once. From the host, after READY: START with an id
// that it has not used before. Then, for that id:
//
//	START      host   JSON, Process; a frame of exactly MaxPayload bytes is continued by the next START of the id
//	STDIN      host   bytes
//	STDIN_EOF  both   from the host: no more bytes; from the guest: nobody reads them any more
//	STDOUT     guest  bytes
//	STDERR     guest  bytes
//	WINDOW     both   the receiver of a stream grants more credit: stream (1 byte), bytes (4 bytes)
//	RESIZE     host   rows (2 bytes), columns (2 bytes)
//	SIGNAL     host   number (1 byte)
//	EXIT       guest  JSON, Exit; the last frame of the id, after all bytes of its streams
//	POWEROFF   host   (id 0) end the machine
//
// # Credit
//
// Each stream starts with Window bytes of credit. STDIN, STDOUT and STDERR use it up; no other frame does, so SIGNAL,
// RESIZE and EXIT never wait for a slow consumer. A receiver holds at most Window bytes per stream, and a sender that
// sends more than it was granted breaks the protocol.
//
// # Trust
//
// The host takes every frame from the guest as hostile: sizes are checked before anything is allocated, text is
// made printable, and any breach ends the session with an error that wraps ErrProtocol. What EXIT says (status,
// resources used, out of memory) are the guest's claims. The guest trusts its host, and ignores frames for a process
// that has ended, because they may have crossed its EXIT.
package guest
