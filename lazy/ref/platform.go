package ref

import (
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Platform is what an image runs on, in Go's words (GOOS, GOARCH), with the variant of the instruction set. Platforms
// from ParsePlatform, NewPlatform and DefaultPlatform are normal: equal platforms compare equal. The variant of the
// baseline is empty (amd64 v1, arm64 v8), arm without a variant is v7.
type Platform struct{ OS, Architecture, Variant string }

var platformPartRE = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// DefaultPlatform is Linux on the architecture this program was built for.
func DefaultPlatform() Platform { return NewPlatform("linux", runtime.GOARCH, "") }

// NewPlatform is the normal form of a platform, other usual spellings understood: x86_64, aarch64, armhf, i386, macos, …
func NewPlatform(os, arch, variant string) Platform {
	os, arch, variant = strings.ToLower(os), strings.ToLower(arch), strings.ToLower(variant)
	if os == "macos" {
		os = "darwin"
	}
	switch arch {
	case "i386":
		arch, variant = "386", ""
	case "x86_64", "x86-64":
		arch = "amd64"
	case "aarch64":
		arch = "arm64"
	case "armhf":
		arch, variant = "arm", "v7"
	case "armel":
		arch, variant = "arm", "v6"
	}
	if variant != "" && variant[0] >= '0' && variant[0] <= '9' {
		variant = "v" + variant
	}
	switch {
	case arch == "amd64" && variant == "v1", arch == "arm64" && (variant == "v8" || variant == "v8.0"):
		variant = ""
	case arch == "arm" && variant == "":
		variant = "v7"
	}
	return Platform{OS: os, Architecture: arch, Variant: variant}
}

// ParsePlatform reads OS/ARCH[/VARIANT], or ARCH[/VARIANT] for Linux ("arm64", "arm/v6").
func ParsePlatform(s string) (Platform, error) {
	parts := strings.Split(s, "/")
	if len(parts) > 3 {
		return Platform{}, fmt.Errorf("%w: platform %q is not OS/ARCH[/VARIANT]", ErrInvalid, s)
	}
	for _, p := range parts {
		if !platformPartRE.MatchString(p) {
			return Platform{}, fmt.Errorf("%w: platform %q is not OS/ARCH[/VARIANT]", ErrInvalid, s)
		}
	}
	switch {
	case len(parts) == 1 && knownOS(parts[0]):
		return NewPlatform(parts[0], runtime.GOARCH, ""), nil
	case len(parts) == 1:
		return NewPlatform("linux", parts[0], ""), nil
	case len(parts) == 2 && knownOS(parts[0]):
		return NewPlatform(parts[0], parts[1], ""), nil
	case len(parts) == 2 && isVariant(parts[1]):
		return NewPlatform("linux", parts[0], parts[1]), nil
	case len(parts) == 2:
		return NewPlatform(parts[0], parts[1], ""), nil
	}
	return NewPlatform(parts[0], parts[1], parts[2]), nil
}

func knownOS(s string) bool {
	return slices.Contains([]string{"linux", "windows", "darwin", "macos", "freebsd"}, strings.ToLower(s))
}

func isVariant(s string) bool {
	return len(s) > 1 && (s[0] == 'v' || s[0] == 'V') && s[1] >= '0' && s[1] <= '9'
}

func (p Platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// runs lists the platforms whose programs p runs, best first, by the rules of containerd's platforms.Only: older
// variants of the same architecture, then its 32-bit predecessor.
func (p Platform) runs() []Platform {
	ps := []Platform{p}
	add := func(arch string, from, to int) {
		for v := from; v >= to; v-- {
			ps = append(ps, NewPlatform(p.OS, arch, "v"+strconv.Itoa(v)))
		}
	}
	switch p.Architecture {
	case "amd64":
		add("amd64", min(variantNumber(p.Variant, 1), 9)-1, 1)
		ps = append(ps, NewPlatform(p.OS, "386", ""))
	case "arm64":
		if p.Variant != "" {
			add("arm64", min(variantNumber(p.Variant, 8), 10)-1, 8)
			if strings.Contains(p.Variant, ".") {
				add("arm64", variantNumber(p.Variant, 8), variantNumber(p.Variant, 8))
			}
		}
		add("arm", 8, 5)
	case "arm":
		add("arm", min(variantNumber(p.Variant, 7), 9)-1, 5)
	}
	return ps
}

// variantNumber is the major number of a variant ("v8.1": 8), or def when it has none.
func variantNumber(v string, def int) int {
	major, _, _ := strings.Cut(strings.TrimPrefix(v, "v"), ".")
	if n, err := strconv.Atoi(major); err == nil {
		return n
	}
	return def
}

// NoPlatformError says that an index has nothing for a platform.
type NoPlatformError struct {
	Want Platform
	Have []Platform // what there is, attestations left out, in the index's order, each once
}

func (e *NoPlatformError) Error() string {
	const most = 24
	if len(e.Have) == 0 {
		return fmt.Sprintf("no image for %s in the index, it lists no platforms", e.Want)
	}
	have := make([]string, 0, most)
	for _, p := range e.Have[:min(len(e.Have), most)] {
		have = append(have, p.String())
	}
	more := ""
	if n := len(e.Have) - most; n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("no image for %s in the index, only for %s%s", e.Want, strings.Join(have, ", "), more)
}

// Select picks the manifest, or nested index, of an index that suits p best, by containerd's order: p itself, then what p
// can run besides (amd64 also 386, arm64 also arm, an older variant before none), and among equals the first. Entries
// that state no platform come last: only their configuration can tell what they are for. Attestations, entries that need
// features of an operating system and what is no image manifest are passed over. The error is a *NoPlatformError.
func Select(p Platform, ds []v1.Descriptor) (v1.Descriptor, error) {
	p = NewPlatform(p.OS, p.Architecture, p.Variant)
	order := p.runs()
	best, rank := -1, len(order)+1
	seen := make(map[Platform]bool)
	var have []Platform
	for i, d := range ds {
		if !IsImage(d) {
			continue
		}
		if d.Platform == nil {
			if best < 0 {
				best, rank = i, len(order)
			}
			continue
		}
		is := NewPlatform(d.Platform.OS, d.Platform.Architecture, d.Platform.Variant)
		if !seen[is] {
			seen[is] = true
			have = append(have, is)
		}
		if r := slices.Index(order, is); r >= 0 && r < rank && len(d.Platform.OSFeatures) == 0 {
			best, rank = i, r
		}
	}
	if best < 0 {
		return v1.Descriptor{}, &NoPlatformError{Want: p, Have: have}
	}
	return ds[best], nil
}

// IsImage says that an index's entry is an image or a nested index, not what build tools put beside them (provenance,
// SBOM) nor anything else.
func IsImage(d v1.Descriptor) bool {
	attestation := d.Annotations["vnd.docker.reference.type"] != "" ||
		d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
	return !attestation && (d.MediaType.IsImage() || d.MediaType.IsIndex())
}
