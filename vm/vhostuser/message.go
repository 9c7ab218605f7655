package vhostuser

import (
	"encoding/binary"
	"errors"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// Requests of the front end ("Front-end message types" in vhost-user.rst).
const (
	msgGetFeatures         = 1
	msgSetFeatures         = 2
	msgSetOwner            = 3
	msgResetOwner          = 4
	msgSetMemTable         = 5
	msgSetVringNum         = 8
	msgSetVringAddr        = 9
	msgSetVringBase        = 10
	msgGetVringBase        = 11
	msgSetVringKick        = 12
	msgSetVringCall        = 13
	msgSetVringErr         = 14
	msgGetProtocolFeatures = 15
	msgSetProtocolFeatures = 16
	msgGetQueueNum         = 17
	msgSetVringEnable      = 18
	msgSetBackendReqFD     = 21
	msgGetConfig           = 24
	msgSetConfig           = 25
	msgResetDevice         = 34
	msgGetMaxMemSlots      = 36
	msgAddMemReg           = 37
	msgRemMemReg           = 38
)

// Protocol features.
const (
	protoMQ                = 1 << 0
	protoReplyAck          = 1 << 3
	protoConfig            = 1 << 9
	protoResetDevice       = 1 << 13
	protoConfigureMemSlots = 1 << 15
)

// Feature bits of the transport (VIRTIO 1.2, section 6, and vhost-user.rst).
const (
	featureIndirect  = 1 << 28
	featureEventIdx  = 1 << 29
	featureProtocol  = 1 << 30
	featureVersion1  = 1 << 32
	transportFeature = featureIndirect | featureEventIdx | featureProtocol | featureVersion1
)

const (
	flagVersion     = 1 // bits 0 and 1
	flagVersionMask = 3
	flagReply       = 1 << 2
	flagNeedReply   = 1 << 3

	headerSize = 12
	maxPayload = 4096
	maxFDs     = 253 // SCM_MAX_FD: what the kernel lets through in one message
)

// A message is one request of the front end. Its descriptors are close-on-exec and belong to it until they are taken.
type message struct {
	request uint32
	flags   uint32
	payload []byte
	fds     []int
}

// receive reads one message. The error is io.EOF when the front end has closed the connection between two messages.
// The payload is valid until the next call with the same buffer.
func receive(conn *net.UnixConn, buf *[headerSize + maxPayload]byte) (_ *message, err error) {
	m := new(message)
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	if err := m.fill(conn, buf[:headerSize], io.EOF); err != nil {
		return nil, err
	}
	m.request = binary.LittleEndian.Uint32(buf[0:])
	m.flags = binary.LittleEndian.Uint32(buf[4:])
	size := binary.LittleEndian.Uint32(buf[8:])
	if m.flags&flagVersionMask != flagVersion || m.flags&flagReply != 0 {
		return nil, protocolError("message %d with flags %#x", m.request, m.flags)
	}
	if size > maxPayload {
		return nil, protocolError("message %d of %d bytes", m.request, size)
	}
	m.payload = buf[headerSize:][:size]
	if err := m.fill(conn, m.payload, io.ErrUnexpectedEOF); err != nil {
		return nil, err
	}
	return m, nil
}

// fill reads len(p) bytes and collects the descriptors that come with them. eof is the error for an end of the
// connection before the first byte.
func (m *message) fill(conn *net.UnixConn, p []byte, eof error) error {
	oob := make([]byte, unix.CmsgSpace(4*maxFDs))
	for n := 0; n < len(p); {
		k, oobn, flags, _, err := conn.ReadMsgUnix(p[n:], oob)
		if oobn > 0 {
			if err := m.takeControl(oob[:oobn]); err != nil {
				return err
			}
		}
		n += k
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			return err
		case flags&unix.MSG_CTRUNC != 0 || len(m.fds) > maxFDs:
			return protocolError("too many descriptors in a message")
		case k == 0 && n == 0:
			return eof
		case k == 0:
			return io.ErrUnexpectedEOF
		}
	}
	return nil
}

func (m *message) takeControl(oob []byte) error {
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return protocolError("parsing control message: %w", err)
	}
	for i := range cmsgs {
		if cmsgs[i].Header.Level != unix.SOL_SOCKET || cmsgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&cmsgs[i])
		if err != nil {
			return protocolError("parsing descriptors: %w", err)
		}
		m.fds = append(m.fds, fds...)
	}
	return nil
}

// close closes the descriptors that nobody took.
func (m *message) close() {
	for _, fd := range m.fds {
		unix.Close(fd)
	}
	m.fds = nil
}

// onlyFD is the message's one descriptor, which stays the message's.
func (m *message) onlyFD() (int, error) {
	if len(m.fds) != 1 {
		return -1, protocolError("message %d with %d descriptors: want 1", m.request, len(m.fds))
	}
	return m.fds[0], nil
}

// takeFD gives the message's one descriptor away.
func (m *message) takeFD() (int, error) {
	fd, err := m.onlyFD()
	if err == nil {
		m.fds = nil
	}
	return fd, err
}

// want checks the size of the payload.
func (m *message) want(size int) error {
	if len(m.payload) != size {
		return protocolError("message %d of %d bytes: want %d", m.request, len(m.payload), size)
	}
	return nil
}

// u64 is the payload of a message that is one number.
func (m *message) u64() (uint64, error) {
	if err := m.want(8); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(m.payload), nil
}

// vringState is the payload of the messages that are a ring's index and a number.
func (m *message) vringState() (index, num uint32, err error) {
	if err := m.want(8); err != nil {
		return 0, 0, err
	}
	return binary.LittleEndian.Uint32(m.payload), binary.LittleEndian.Uint32(m.payload[4:]), nil
}

// reply sends the answer to m.
func (m *message) reply(w io.Writer, payload []byte) error {
	b := make([]byte, 0, headerSize+len(payload))
	b = binary.LittleEndian.AppendUint32(b, m.request)
	b = binary.LittleEndian.AppendUint32(b, flagVersion|flagReply)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	_, err := w.Write(append(b, payload...))
	return err
}

func le64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
