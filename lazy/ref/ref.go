// Package ref names images: where one is kept (a registry, an OCI layout on disk) and under which name there, and for
// which platform it is wanted. It only parses and compares; it opens nothing and reads no environment.
package ref

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// ErrInvalid is wrapped by every error of Parse and ParsePlatform.
var ErrInvalid = errors.New("invalid reference")

// Transport is the kind of place that holds an image.
type Transport string

const (
	// Registry is a registry that speaks the OCI distribution specification.
	Registry Transport = "registry"
	// OCI is a folder in the OCI image layout.
	OCI Transport = "oci"
)

// maxLen is the longest reference Parse looks at, in bytes: PATH_MAX and room for a tag and a digest.
const maxLen = 4096 + 512

// Ref names an image. It is made by Parse; the zero value names nothing. Refs with equal String are equal.
type Ref struct {
	Transport Transport

	// Name is the registry's reference, a name.Tag or a name.Digest. Only of Registry.
	Name name.Reference

	// Dir is the layout's folder, cleaned; it holds no colon. Only of OCI.
	Dir string
	// Tag is the name within the layout, in the annotation org.opencontainers.image.ref.name. Empty: the layout's
	// only image. Only of OCI, and not beside Digest.
	Tag string
	// Digest picks a manifest of the layout by its digest. The zero Hash: none. Only of OCI.
	Digest v1.Hash
}

const labelRE = `[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?` // one label of a host name

var (
	// Names as the distribution specification has them (v1.1, "Pulling manifests").
	repositoryRE = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagRE        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	hostRE       = regexp.MustCompile(`^(?:` + labelRE + `(?:\.` + labelRE + `)*|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?$`)

	// Names within a layout as the image specification has them (annotations.md, org.opencontainers.image.ref.name).
	layoutNameRE = regexp.MustCompile(`^[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*(?:/[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*)*$`)
)

// Parse reads a reference in one of these forms.
//
//	[docker://][HOST[:PORT]/]NAME[:TAG][@DIGEST]   an image in a registry
//	oci:DIR[:TAG][@DIGEST]                         an image in an OCI layout
//
// A registry's name is completed as docker does it: no host means Docker Hub, one component there means library/NAME, no
// tag means latest. A first component is a host when it holds a dot or a colon or is "localhost".
//
// In an oci reference the folder ends at the first colon, as skopeo has it: a folder can't hold a colon, a tag can.
//
// A DIGEST (sha256 or sha512, hex in lower case) names the image by itself: a tag beside it is checked and dropped.
func Parse(s string) (Ref, error) {
	switch {
	case s == "":
		return Ref{}, fmt.Errorf("%w: it is empty", ErrInvalid)
	case len(s) > maxLen:
		return Ref{}, fmt.Errorf("%w: it is %d bytes long, more than %d", ErrInvalid, len(s), maxLen)
	}
	var r Ref
	var err error
	if rest, ok := strings.CutPrefix(s, "oci:"); ok {
		r, err = parseLayout(rest)
	} else {
		r, err = parseRegistry(strings.TrimPrefix(s, "docker://"))
	}
	if err != nil {
		return Ref{}, fmt.Errorf("%w %q: %w", ErrInvalid, s, err)
	}
	return r, nil
}

func parseRegistry(s string) (Ref, error) {
	if scheme, _, ok := strings.Cut(s, "://"); ok {
		return Ref{}, fmt.Errorf("%s:// has no place in a reference, write HOST/NAME:TAG", scheme)
	}
	base, digest, hasDigest := strings.Cut(s, "@")
	if hasDigest {
		if _, err := v1.NewHash(digest); err != nil {
			return Ref{}, err
		}
	}
	host, repo := "", base
	if first, rest, ok := strings.Cut(base, "/"); ok && (first == "localhost" || strings.ContainsAny(first, ".:")) {
		host, repo = first, rest
		if !hostRE.MatchString(host) {
			return Ref{}, fmt.Errorf("%q is no host or host:port", host)
		}
	}
	repo, tag, hasTag := strings.Cut(repo, ":")
	if hasTag && !tagRE.MatchString(tag) {
		return Ref{}, fmt.Errorf("%q is no tag: up to 128 of letters, digits, dot, dash and underscore, not first a dot or dash", tag)
	}
	if !repositoryRE.MatchString(repo) {
		if lower := strings.ToLower(repo); repositoryRE.MatchString(lower) {
			return Ref{}, fmt.Errorf("the name must be lower case: %q", lower)
		}
		return Ref{}, fmt.Errorf("%q is no name of a repository", repo)
	}
	if host != "" {
		repo = host + "/" + repo
	}
	full, err := name.NewRepository(repo, name.WeakValidation)
	if err != nil {
		return Ref{}, err
	}
	// Rebuilt from the parts so that the name doesn't depend on how it was written.
	full, err = name.NewRepository(full.Name(), name.WeakValidation)
	if err != nil {
		return Ref{}, err
	}
	if hasDigest {
		return Ref{Transport: Registry, Name: full.Digest(digest)}, nil
	}
	if !hasTag {
		tag = name.DefaultTag
	}
	return Ref{Transport: Registry, Name: full.Tag(tag)}, nil
}

func parseLayout(s string) (Ref, error) {
	r := Ref{Transport: OCI}
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		if h, err := v1.NewHash(s[i+1:]); err == nil {
			r.Digest, s = h, s[:i]
		}
	}
	dir, tag, hasTag := strings.Cut(s, ":")
	switch {
	case dir == "":
		return Ref{}, errors.New("it names no folder")
	case strings.ContainsRune(dir, 0):
		return Ref{}, errors.New("the folder's name holds a NUL byte")
	case hasTag && !layoutNameRE.MatchString(tag):
		return Ref{}, fmt.Errorf("%q is no name within a layout (the folder ends at the first colon)", tag)
	}
	r.Dir = filepath.Clean(dir)
	if r.Digest == (v1.Hash{}) {
		r.Tag = tag
	}
	return r, nil
}

// String is the reference in full: Parse of it gives an equal Ref.
func (r Ref) String() string {
	switch {
	case r.Transport == Registry && r.Name != nil:
		return r.Name.Name()
	case r.Transport != OCI:
		return ""
	case r.Digest != (v1.Hash{}):
		return "oci:" + r.Dir + "@" + r.Digest.String()
	case r.Tag != "":
		return "oci:" + r.Dir + ":" + r.Tag
	}
	return "oci:" + r.Dir
}

// IsDigest says that r names an image by digest, so that it can never mean another one.
func (r Ref) IsDigest() bool {
	if r.Transport == Registry {
		_, ok := r.Name.(name.Digest)
		return ok
	}
	return r.Digest != (v1.Hash{})
}

// Abs is r with a layout's folder made absolute by the working directory, for use in another process. It fails when the
// working directory can't be had or holds a colon.
func (r Ref) Abs() (Ref, error) {
	if r.Transport != OCI || filepath.IsAbs(r.Dir) {
		return r, nil
	}
	dir, err := filepath.Abs(r.Dir)
	if err != nil {
		return Ref{}, fmt.Errorf("making %s absolute: %w", r, err)
	}
	if strings.Contains(dir, ":") {
		return Ref{}, fmt.Errorf("%w: folder %s holds a colon", ErrInvalid, dir)
	}
	r.Dir = dir
	return r, nil
}
