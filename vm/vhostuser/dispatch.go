package vhostuser

import (
	"encoding/binary"
)

// noFD is set in the payload of SET_VRING_KICK and its like if no descriptor comes with it.
const noFD = 1 << 8

// maxTable is the most regions in one SET_MEM_TABLE.
const maxTable = 8

// hasReply reports whether the message has an answer of its own, which a refusal can't take the place of.
func (m *message) hasReply() bool {
	switch m.request {
	case msgGetFeatures, msgGetProtocolFeatures, msgGetQueueNum, msgGetVringBase, msgGetConfig, msgGetMaxMemSlots:
		return true
	}
	return false
}

// dispatch carries out one message. Descriptors it doesn't take are closed by the caller, which holds the gate.
func (s *server) dispatch(m *message) (reply []byte, err error) {
	switch m.request {
	case msgGetFeatures:
		return le64(s.offered()), nil
	case msgSetFeatures:
		return nil, s.setFeatures(m)
	case msgGetProtocolFeatures:
		return le64(s.offeredProtocol()), nil
	case msgSetProtocolFeatures:
		return nil, s.setProtocolFeatures(m)
	case msgSetOwner, msgSetBackendReqFD, msgSetConfig:
		// Nothing here is ever asked of the front end, and configuration is read-only: writing it has no effect.
		return nil, nil
	case msgResetOwner, msgResetDevice:
		for _, r := range s.rings {
			r.reset()
		}
		return nil, nil
	case msgGetQueueNum:
		return le64(uint64(len(s.rings))), nil
	case msgGetConfig:
		return s.getConfig(m)
	case msgGetMaxMemSlots:
		return le64(maxRegions), nil
	case msgSetMemTable:
		return nil, s.setMemTable(m)
	case msgAddMemReg:
		return nil, s.addMemReg(m)
	case msgRemMemReg:
		return nil, s.remMemReg(m)
	case msgSetVringNum, msgSetVringBase, msgSetVringEnable, msgGetVringBase:
		return s.setVringState(m)
	case msgSetVringAddr:
		return nil, s.setVringAddr(m)
	case msgSetVringKick, msgSetVringCall, msgSetVringErr:
		return nil, s.setVringFD(m)
	default:
		// SET_LOG_BASE among them: without VHOST_F_LOG_ALL there is nothing to log.
		return nil, protocolError("message %d is not supported", m.request)
	}
}

func (s *server) offered() uint64 { return s.info.Features | transportFeature }

func (s *server) offeredProtocol() uint64 {
	f := uint64(protoMQ | protoReplyAck | protoResetDevice | protoConfigureMemSlots)
	if s.info.OfferConfig {
		f |= protoConfig
	}
	return f
}

func (s *server) setFeatures(m *message) error {
	f, err := m.u64()
	if err != nil {
		return err
	}
	if f&^s.offered() != 0 {
		return protocolError("features %#x were not offered", f&^s.offered())
	}
	for _, r := range s.rings {
		if r.started && f != s.features {
			return protocolError("changing features while ring %d is started", r.index)
		}
	}
	s.features = f
	return nil
}

func (s *server) setProtocolFeatures(m *message) error {
	f, err := m.u64()
	if err != nil {
		return err
	}
	if f&^s.offeredProtocol() != 0 {
		return protocolError("protocol features %#x were not offered", f&^s.offeredProtocol())
	}
	s.protocol = f
	return nil
}

// getConfig reads the configuration space, which is followed by zeros. An answer without payload is a refusal.
func (s *server) getConfig(m *message) ([]byte, error) {
	const header = 12
	if len(m.payload) < header {
		return []byte{}, nil
	}
	offset := binary.LittleEndian.Uint32(m.payload)
	size := binary.LittleEndian.Uint32(m.payload[4:])
	if offset > maxConfig || size > maxConfig-offset || len(m.payload) != header+int(size) {
		return []byte{}, nil
	}
	reply := append([]byte(nil), m.payload[:header]...)
	var space [maxConfig]byte
	copy(space[:], s.info.Config)
	return append(reply, space[offset:][:size]...), nil
}

// setMemTable replaces all memory. Rings that run go on in the new one.
func (s *server) setMemTable(m *message) error {
	if len(m.payload) < 8 {
		return protocolError("memory table of %d bytes", len(m.payload))
	}
	n := binary.LittleEndian.Uint32(m.payload)
	if n > maxTable || len(m.payload) != 8+int(n)*regionDescSize || len(m.fds) != int(n) {
		return protocolError("memory table of %d regions in %d bytes with %d descriptors", n, len(m.payload), len(m.fds))
	}
	var table memory
	for i, fd := range m.fds {
		r, err := mapRegion(fd, parseRegionDesc(m.payload[8+i*regionDescSize:]))
		if err == nil {
			if err = table.add(r); err != nil {
				_ = r.unmap() // the error that counts is the other
			}
		}
		if err != nil {
			_ = table.unmap()
			return err
		}
	}
	old := s.mem
	s.mem = table
	s.resolveRings()
	return old.unmap()
}

func (s *server) addMemReg(m *message) error {
	if err := m.want(8 + regionDescSize); err != nil {
		return err
	}
	fd, err := m.onlyFD()
	if err != nil {
		return err
	}
	r, err := mapRegion(fd, parseRegionDesc(m.payload[8:]))
	if err != nil {
		return err
	}
	if err := s.mem.add(r); err != nil {
		_ = r.unmap() // the error that counts is the other
		return err
	}
	return nil
}

// remMemReg takes a region away. Some front ends send a descriptor with it, which says nothing.
func (s *server) remMemReg(m *message) error {
	if err := m.want(8 + regionDescSize); err != nil {
		return err
	}
	err := s.mem.remove(parseRegionDesc(m.payload[8:]))
	s.resolveRings()
	return err
}

// resolveRings finds the started rings again after memory has changed. One that is gone is broken.
func (s *server) resolveRings() {
	for _, r := range s.rings {
		if !r.started {
			continue
		}
		if err := r.resolve(); err != nil {
			r.fault(err)
		}
	}
}

// ring gives the ring of an index that came with a message.
func (s *server) ring(index uint32) (*ring, error) {
	if index >= uint32(len(s.rings)) {
		return nil, protocolError("ring %d of %d", index, len(s.rings))
	}
	return s.rings[index], nil
}

func (s *server) setVringState(m *message) (reply []byte, err error) {
	index, num, err := m.vringState()
	if err != nil {
		return nil, err
	}
	r, err := s.ring(index)
	if err != nil {
		return nil, err
	}
	switch m.request {
	case msgGetVringBase:
		r.stop()
		reply = binary.LittleEndian.AppendUint32(nil, index)
		return binary.LittleEndian.AppendUint32(reply, uint32(r.nextAvail)), nil
	case msgSetVringEnable:
		if num > 1 {
			return nil, protocolError("ring %d enabled with %d", index, num)
		}
		r.enabled = num == 1
		return nil, nil
	}
	if r.started {
		return nil, protocolError("ring %d is changed while it is started", index)
	}
	switch m.request {
	case msgSetVringNum:
		if num == 0 || num > maxRing || num&(num-1) != 0 {
			return nil, protocolError("ring %d of %d entries", index, num)
		}
		r.num = uint16(num)
	case msgSetVringBase:
		if num > 0xffff {
			return nil, protocolError("ring %d at %d", index, num)
		}
		r.nextAvail = uint16(num)
	}
	return nil, nil
}

// setVringAddr says where a ring is. Only one that isn't started can move.
func (s *server) setVringAddr(m *message) error {
	if err := m.want(40); err != nil {
		return err
	}
	p := m.payload
	r, err := s.ring(binary.LittleEndian.Uint32(p))
	if err != nil {
		return err
	}
	if flags := binary.LittleEndian.Uint32(p[4:]); flags != 0 {
		return protocolError("ring %d with flags %#x: there is no log", r.index, flags)
	}
	at := place{
		desc:  binary.LittleEndian.Uint64(p[8:]),
		used:  binary.LittleEndian.Uint64(p[16:]),
		avail: binary.LittleEndian.Uint64(p[24:]),
	}
	if r.started && at != r.at {
		return protocolError("ring %d is moved while it is started", r.index)
	}
	r.at = at
	return nil
}

// setVringFD takes a ring's descriptor. The one for kicks starts the ring.
func (s *server) setVringFD(m *message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	if v&^(noFD|0xff) != 0 {
		return protocolError("message %d for ring %#x", m.request, v)
	}
	r, err := s.ring(uint32(v & 0xff))
	if err != nil {
		return err
	}
	if v&noFD != 0 {
		switch {
		case m.request == msgSetVringKick:
			return protocolError("ring %d without kicks: polling is not supported", r.index)
		case len(m.fds) != 0:
			return protocolError("message %d with a descriptor that is said not to be there", m.request)
		case m.request == msgSetVringCall:
			replace(&r.call, -1)
		default:
			replace(&r.errs, -1)
		}
		return nil
	}
	if m.request == msgSetVringKick {
		return s.startRing(r, m)
	}
	fd, err := m.takeFD()
	if err != nil {
		return err
	}
	if m.request == msgSetVringErr {
		replace(&r.errs, fd)
		return nil
	}
	replace(&r.call, fd)
	// What came to be used before there was a way to tell is told now.
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = false
	return nil
}

func (s *server) startRing(r *ring, m *message) error {
	fd, err := m.onlyFD()
	if err != nil {
		return err
	}
	if r.wait == nil {
		if r.wait, err = newWaiter(); err != nil {
			return err
		}
		s.wg.Go(r.run)
	}
	if err := r.setKick(fd); err != nil {
		return err
	}
	m.fds = nil
	if r.started {
		return nil
	}
	if s.features&featureProtocol == 0 {
		r.enabled = true
	}
	return r.start()
}
