package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// TestCacheOfAnother gives every program a cache folder of another version, or whose version file is empty: it says so in a line, with a
// hint, and leaves the folder as it is.
func TestCacheOfAnother(t *testing.T) {
	for _, tt := range []struct {
		version string
		words   []string
	}{
		{"pex cache 99\n", []string{"another version", `"pex cache 99"`, "left alone"}},
		{"", []string{"version file is empty", "left alone"}},
	} {
		l := newLab(t)
		if err := os.Mkdir(l.cache, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(l.cache, "version"), []byte(tt.version), 0o600); err != nil {
			t.Fatal(err)
		}
		image, dir := fixtureImage(t, formGzip), t.TempDir()
		for _, args := range [][]string{
			{"mount", image, dir}, {"ls"}, {"wait", image}, {"rm", image}, {"pin", image}, {"unpin", image}, {"du"}, {"gc"}, {"profile", "ls"},
			{"daemon"}, {"daemon", "--replace"}, {"daemon", "stop"}, {"daemon", "restart"},
		} {
			l.fails(1, append(tt.words, l.cache), "pexfs", args...)
		}
		l.fails(8, append(tt.words, l.cache), "pexfs", "fsck")
		l.fails(125, append(tt.words, l.cache), "pex", "run", image, "true")
		nothingIn(t, l.cache, "version")
	}
}

// TestSecondDaemon starts a daemon on a folder that has one.
func TestSecondDaemon(t *testing.T) {
	l := newLab(t)
	l.do("pexfs", "ls")
	first := daemonOf(t, l.cache)
	l.fails(1, []string{l.cache + " is held by process " + strconv.Itoa(first) + " since 20", "pexfs daemon", ", version "}, "pexfs", "daemon")
	if daemonOf(t, l.cache) != first {
		t.Error("it is another daemon's now")
	}
	l.do("pexfs", "ls")
}

// TestCacheSizeUnreadable has the environment bound the cache by what is no size: whoever would start a daemon says so.
func TestCacheSizeUnreadable(t *testing.T) {
	l := newLab(t)
	l.env = []string{"PEX_CACHE_SIZE=much"}
	for _, args := range [][]string{{"ls"}, {"daemon"}, {"daemon", "restart"}} {
		l.fails(1, []string{`PEX_CACHE_SIZE="much"`}, "pexfs", args...)
	}
}

// TestMachineOnFullDisk has no room for what machines boot: the error says what it is and how much it takes.
func TestMachineOnFullDisk(t *testing.T) {
	l := newLab(t)
	l.cache = filepath.Join(smallDisk(t, "2m"), "cache")
	image := fixtureImage(t, formStargz)
	l.mount("--no-fill", image) // that much there is room for
	l.fails(125, []string{l.cache, "which takes ", " bytes: ", "no space left on device"}, "pex", "run", "--no-fill", image, "true")
}
