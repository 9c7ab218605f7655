package main

import (
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/pexfs/pex/cmd/internal/machine"
	"github.com/pexfs/pex/vm"
	"github.com/pexfs/pex/vm/qemu"
)

// superviseName is the hidden command that machine.Start executes.
const superviseName = "supervise"

func superviseCommand() *cobra.Command {
	return &cobra.Command{
		Use: superviseName, Hidden: true, Args: cobra.NoArgs,
		// Its Config names every path: it needs no cache folder of its own.
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil },
		RunE: func(cmd *cobra.Command, _ []string) error {
			s := machine.Supervisor{Name: "qemu", Find: findQEMU, Open: attachImage, Host: vm.ReadHost()}
			return s.Run(cmd.Context())
		},
	}
}

func findQEMU(console io.Writer) (machine.VMM, error) {
	q, err := qemu.Find(qemu.Options{Console: console})
	if errors.Is(err, vm.ErrUnavailable) {
		return nil, &machine.EndedError{Ended: machine.Ended{
			Error: err.Error(),
			Hint:  "install QEMU: on Debian the packages qemu-system-x86 and qemu-system-data",
		}}
	}
	return q, err
}
