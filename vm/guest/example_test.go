package guest_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/pexfs/pex/vm/guest"
)

func ExampleSession() {
	host, port := net.Pipe()

	// What PID 1 does in the guest.
	go func() {
		srv := guest.NewServer(port)
		srv.Hello("0123abcd")
		srv.Ready(guest.Ready{Root: "virtiofs"})
		srv.Serve(func(t *guest.Task) {
			fmt.Fprintln(t.Stdout(), strings.Join(t.Process.Args[1:], " "))
			t.Exit(guest.Exit{Code: 7})
		})
	}()

	ctx := context.Background()
	s := guest.NewSession(host)
	defer s.Close()
	hello, _, err := s.WaitReady(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	p, err := s.Start(ctx, guest.Process{Args: []string{"echo", "hi"}}, guest.Streams{Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		fmt.Println(err)
		return
	}
	exit, err := p.Wait(ctx)
	fmt.Println(hello.Build, exit.Code, err)
	// Output:
	// hi
	// 0123abcd 7 <nil>
}
