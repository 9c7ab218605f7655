package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/pexfs/pex/vm"
)

// maxMessage bounds one line of QMP. QEMU is trusted no further than its guest:
// one that was taken over may say anything.
const maxMessage = 1 << 20

// message is what QMP says: a greeting, an answer or an event (QEMU's QMP
// specification, 2.2 to 2.5).
type message struct {
	QMP    *json.RawMessage `json:"QMP"`
	Return *json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
	Data  struct {
		Guest  bool   `json:"guest"`
		Reason string `json:"reason"`
	} `json:"data"`
}

// monitor listens to QMP from the start to the end of QEMU.
type monitor struct {
	conn net.Conn
	read *bufio.Scanner
	said vm.Cause      // read after done
	done chan struct{} // the channel has ended
}

// openMonitor does the handshake: from then on QMP sends events. It owns conn if
// it succeeds. A QEMU that stops before that, or says something else, is an error.
func openMonitor(ctx context.Context, conn net.Conn) (*monitor, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	m := &monitor{conn: conn, read: bufio.NewScanner(conn), done: make(chan struct{})}
	m.read.Buffer(nil, maxMessage)
	greeting, err := m.next()
	if err != nil {
		return nil, err
	}
	if greeting.QMP == nil {
		return nil, errors.New("reading QMP greeting: something else came")
	}
	if _, err := io.WriteString(conn, `{"execute":"qmp_capabilities"}`+"\n"); err != nil {
		return nil, fmt.Errorf("writing to QMP: %w", err)
	}
	for {
		msg, err := m.next()
		if err != nil {
			return nil, err
		}
		if msg.Error != nil {
			return nil, fmt.Errorf("negotiating QMP: %q", msg.Error.Desc)
		}
		if msg.Return != nil {
			break
		}
		m.note(msg)
	}
	if !stop() {
		return nil, ctx.Err()
	}
	go m.listen()
	return m, nil
}

func (m *monitor) listen() {
	defer close(m.done)
	defer m.conn.Close()
	for {
		msg, err := m.next()
		if err != nil {
			return
		}
		m.note(msg)
	}
}

func (m *monitor) next() (message, error) {
	if !m.read.Scan() {
		err := m.read.Err()
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return message{}, fmt.Errorf("reading from QMP: %w", err)
	}
	var msg message
	if err := json.Unmarshal(m.read.Bytes(), &msg); err != nil {
		return message{}, fmt.Errorf("reading from QMP: %w", err)
	}
	return msg, nil
}

// note keeps why the machine shuts down. Power-off and reset are told apart by
// nothing else: QEMU's exit status is 0 for both.
func (m *monitor) note(msg message) {
	if msg.Event != "SHUTDOWN" {
		return
	}
	switch msg.Data.Reason {
	case "guest-shutdown":
		m.said = vm.PowerOff
	case "guest-reset", "guest-panic":
		m.said = vm.Reset
	}
}

// cause is what QMP said of the machine's end. It is called when QEMU has ended,
// with it the channel; should another process still hold that, the wait is bounded.
func (m *monitor) cause(patience time.Duration) vm.Cause {
	m.conn.SetReadDeadline(time.Now().Add(patience))
	<-m.done
	return m.said
}
