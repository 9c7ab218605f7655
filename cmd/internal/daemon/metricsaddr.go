package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// listenMetrics opens the address that metrics are asked for at: on this machine only, unless a host is named. "" is none.
func listenMetrics(ctx context.Context, address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("listening for metrics: %w", err)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, fmt.Errorf("listening for metrics: %w", err)
	}
	return l, nil
}

// serveMetrics answers at l, which may be nil, what may be asked for over a network, until the daemon ends.
func (s *server) serveMetrics(l net.Listener) {
	if l == nil {
		return
	}
	mux := http.NewServeMux()
	s.seeing(mux)
	hs := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, MaxHeaderBytes: 64 << 10}
	s.work.Go(func() {
		if err := hs.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("serving metrics", "err", err)
		}
	})
	s.work.Go(func() {
		<-s.ctx.Done()
		hs.Close()
	})
	s.log.Info("metrics are served", "address", l.Addr().String())
}
