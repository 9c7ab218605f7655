package cli

import "path/filepath"

// MountUser is what status calls the view that is mounted on dir.
func MountUser(dir string) string {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return ""
	}
	if real, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		abs = filepath.Join(real, filepath.Base(abs))
	}
	return "mount " + abs
}
