// Command guestprog is what the tests run in machines.
package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(99)
	}
}

func run(what string, args []string) error {
	switch what {
	case "print":
		fmt.Println(args)
		dir, err := os.Getwd()
		fmt.Println(dir, os.Getenv("A"), os.Getenv("B"), os.Getuid(), os.Getgid())
		return err
	case "exit":
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		os.Exit(n)
	case "cat":
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	case "spew": // as many bytes on both streams
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		var wg sync.WaitGroup
		for i, f := range []*os.File{os.Stdout, os.Stderr} {
			wg.Go(func() {
				b := make([]byte, n)
				for j := range b {
					b[j] = byte('a' + (i+j)%26)
				}
				f.Write(b)
			})
		}
		wg.Wait()
	case "sum": // of each file, or why it can't be read
		for _, name := range args {
			b, err := os.ReadFile(name)
			var e *fs.PathError
			if errors.As(err, &e) {
				fmt.Println(name, e.Err)
				continue
			}
			fmt.Printf("%s %x\n", name, sha256.Sum256(b))
		}
	case "line": // waits for one, and goes on with the other words
		fmt.Println("ready")
		if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
			return err
		}
		return run(args[0], args[1:])
	case "fault":
		return countFaults(args[0])
	case "wait": // for a signal that kills
		fmt.Println("waiting")
		time.Sleep(time.Hour)
	case "stubborn": // names the signals it gets and heeds none
		in := make(chan os.Signal, 16)
		// not all: the runtime's own SIGURG would be among them
		signal.Notify(in, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
		fmt.Println("waiting")
		for s := range in {
			fmt.Println("got", int(s.(syscall.Signal)))
		}
	case "poweroff":
		return syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	case "panic":
		return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	case "overwrite": // the device with the root, and a file of it
		f, err := os.OpenFile("/dev/pmem0", os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		for i := range int64(600) {
			if _, err := f.WriteAt(make([]byte, 4096), i*4096); err != nil {
				fmt.Println("writing:", err)
				break
			}
		}
		f.Sync()
		syscall.Sync()
		return os.WriteFile("/etc/motd", []byte("changed"), 0o644)
	default:
		return fmt.Errorf("unknown %q", what)
	}
	return nil
}
