package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestHasVirtualization(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		want bool
	}{
		"intel":          {"processor\t: 0\nflags\t\t: fpu vmx sse\n", true},
		"amd":            {"processor\t: 0\nflags\t\t: fpu svm\n", true},
		"none":           {"processor\t: 0\nflags\t\t: fpu sse\n", false},
		"part of a flag": {"flags : fpu vmx_foo xsvm\n", false},
		"other line":     {"vmx flags\t: ept vmx\nbugs : svm\n", false},
		"empty":          {"", false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := HasVirtualization(strings.NewReader(tt.text))
			if err != nil || got != tt.want {
				t.Errorf("got %v, %v, want %v", got, err, tt.want)
			}
		})
	}
}

func TestKVMUsable(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	with, without, device := file("with", "flags: svm\n"), file("without", "flags: fpu\n"), file("kvm", "")
	missing := filepath.Join(dir, "missing")
	for name, tt := range map[string]struct {
		cpuinfo, device string
		want            string
	}{
		"usable":     {with, device, ""},
		"no flag":    {without, device, "neither vmx nor svm"},
		"no device":  {with, missing, "no such file"},
		"no cpuinfo": {missing, device, "reading processor flags"},
	} {
		t.Run(name, func(t *testing.T) {
			err := kvmUsable(tt.cpuinfo, tt.device)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestBoot(t *testing.T) {
	ok := func(context.Context) error { return nil }
	fails := func(context.Context) error { return errors.New("exit status 1") }
	hangs := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	tests := []struct {
		name     string
		host     Host
		kvm, tcg func(context.Context) error
		want     []string // two boots: attempts, what was said, results
	}{
		{"no KVM", Host{KVM: errors.New("no")}, nil, ok, []string{"try tcg", "tcg: <nil>", "try tcg", "tcg: <nil>"}},
		{"KVM works", Host{}, ok, nil, []string{"try kvm", "kvm: <nil>", "try kvm", "kvm: <nil>"}},
		{"KVM fails", Host{}, fails, ok, []string{
			"try kvm", "try tcg", "said running under KVM: exit status 1", "tcg: <nil>", "try tcg", "tcg: <nil>",
		}},
		{"KVM hangs", Host{}, hangs, ok, []string{
			"try kvm", "try tcg", "said running under KVM: the guest was not ready after 15s", "tcg: <nil>", "try tcg", "tcg: <nil>",
		}},
		{"all fails", Host{}, fails, fails, []string{
			"try kvm", "try tcg", "tcg: exit status 1", "try kvm", "try tcg", "tcg: exit status 1",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got []string
				b := Booter{
					Host:     tt.host,
					Memory:   Verdicts(filepath.Join(t.TempDir(), "kvm")),
					VMM:      "one",
					Fallback: func(f *KVMFailure) { got = append(got, "said "+f.Error()) },
				}
				for range 2 {
					a, err := b.Boot(t.Context(), func(ctx context.Context, a Accel) error {
						got = append(got, "try "+string(a))
						if a == KVM {
							return tt.kvm(ctx)
						}
						return tt.tcg(ctx)
					})
					got = append(got, fmt.Sprintf("%s: %v", a, err))
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		})
	}
}

// What a guest waits for under KVM isn't held against KVM.
func TestBootFrom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from := make(chan struct{})
		b := Booter{Memory: Verdicts(filepath.Join(t.TempDir(), "kvm")), From: from}
		a, err := b.Boot(t.Context(), func(ctx context.Context, a Accel) error {
			time.Sleep(time.Hour)
			close(from)
			time.Sleep(KVMDeadline - 1)
			return ctx.Err()
		})
		if a != KVM || err != nil {
			t.Errorf("Boot() = %s, %v", a, err)
		}
	})
}

// A user who gives up tells nothing about KVM.
func TestBootInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	b := Booter{Memory: Verdicts(filepath.Join(t.TempDir(), "kvm"))}
	tries := 0
	_, err := b.Boot(ctx, func(ctx context.Context, a Accel) error {
		tries++
		cancel()
		<-ctx.Done()
		return ctx.Err()
	})
	if !errors.Is(err, context.Canceled) || tries != 1 {
		t.Errorf("Boot() = %v after %d tries", err, tries)
	}
	if b.Memory.Failed(b.key()) {
		t.Error("KVM was recorded as failing")
	}
}

func TestVerdicts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kvm")
	v := Verdicts(path)
	keys := map[string]bool{}
	for _, b := range []Booter{
		{VMM: "a"}, {VMM: "b"}, {VMM: "a", Host: Host{BootID: "x"}}, {VMM: "a", Host: Host{Release: "x"}},
	} {
		keys[b.key()] = true
	}
	if len(keys) != 4 {
		t.Errorf("%d different keys, want 4", len(keys))
	}
	for i := range 20 {
		if err := v.Record(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if v.Failed("11") || !v.Failed("12") || !v.Failed("19") {
		t.Error("want the last 8 verdicts and no other")
	}
	for _, text := range []string{"", "garbage", `{"a":1}`, `[1]`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if v.Failed("19") {
			t.Errorf("a verdict was read from %q", text)
		}
		if err := v.Record("new"); err != nil || !v.Failed("new") {
			t.Errorf("recording over %q: %v", text, err)
		}
	}
	if none := Verdicts(""); none.Record("x") != nil || none.Failed("x") {
		t.Error("the empty path remembers something")
	}
	if err := Verdicts(filepath.Join(path, "x")).Record("x"); err == nil {
		t.Error("recording below a file: no error")
	}
}
