package main

import (
	"debug/buildinfo"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// newDocument describes the machine and the programs.
func newDocument() *document {
	d := &document{Date: time.Now().UTC().Truncate(time.Second), Machine: map[string]string{}, Versions: map[string]string{}, Images: map[string]string{}}
	d.Machine["cores"] = strconv.Itoa(runtime.NumCPU())
	cpu, _ := os.ReadFile("/proc/cpuinfo")
	if _, rest, ok := strings.Cut(string(cpu), "model name"); ok {
		line, _, _ := strings.Cut(rest, "\n")
		d.Machine["CPU"] = strings.TrimLeft(line, "\t :")
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		d.Machine["memory MiB"] = strconv.FormatUint(uint64(info.Totalram)*uint64(info.Unit)>>20, 10)
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		d.Machine["kernel"] = unix.ByteSliceToString(u.Release[:])
	}
	load, _ := os.ReadFile("/proc/loadavg")
	d.Load = strings.TrimSpace(string(load))
	d.Versions["go"] = runtime.Version()
	for name, args := range map[string][]string{
		"pexfs": {"pexfs", "version"}, "containerd": {"containerd", "--version"},
		"skopeo": {"skopeo", "--version"}, "umoci": {"umoci", "--version"}, "mkfs.erofs": {"mkfs.erofs", "-V"}, "mkfs.ext4": {"mkfs.ext4", "-V"},
	} {
		d.Versions[name] = version(args)
	}
	d.Versions["stargz-snapshotter"] = moduleVersion("stargz", "github.com/containerd/stargz-snapshotter")
	return d
}

// version is the first line that a program says of itself.
func version(args []string) string {
	var out, errs strings.Builder
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && out.Len() == 0 {
		return "not found"
	}
	line, _, _ := strings.Cut(out.String()+errs.String(), "\n")
	return strings.TrimPrefix(strings.TrimSpace(line), args[0]+" ")
}

// moduleVersion is the version of a module that a Go program is made of.
func moduleVersion(program, module string) string {
	path, err := exec.LookPath(program)
	if err != nil {
		return "not found"
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	for _, m := range info.Deps {
		if m.Path == module {
			return m.Version
		}
	}
	return "unknown"
}
