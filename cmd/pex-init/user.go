//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxAccounts = 8 << 20 // of /etc/passwd and /etc/group each, in bytes
	maxGroups   = 65536   // supplementary groups (Linux: NGROUPS_MAX)
)

// user is who a program runs as.
type user struct {
	uid, gid uint32
	groups   []uint32 // supplementary
	home     string
}

// lookUpUser resolves "", "name", "uid", "name:group", "uid:gid" or a mixture as docker does: a number need not be in
// passwd or group, a name must be; a group given replaces the supplementary ones. The texts are those of /etc/passwd
// and /etc/group; lines in them that make no sense are skipped.
func lookUpUser(spec, passwd, group string) (user, error) {
	u := user{home: "/"}
	name, groupName, hasGroup := strings.Cut(spec, ":")
	number, isNumber := parseID(name)
	if name == "" {
		number, isNumber = 0, true
	}
	account := "" // the name it has in passwd
	for line := range strings.Lines(passwd) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(f) < 4 || f[0] == "" {
			continue
		}
		uid, ok1 := parseID(f[2])
		gid, ok2 := parseID(f[3])
		if !ok1 || !ok2 || isNumber && uid != number || !isNumber && f[0] != name {
			continue
		}
		account, u.uid, u.gid = f[0], uid, gid
		if len(f) > 5 && strings.HasPrefix(f[5], "/") {
			u.home = f[5]
		}
		break
	}
	if account == "" {
		if !isNumber {
			return user{}, fmt.Errorf("unable to find user %s: no matching entries in passwd file", name)
		}
		u.uid = number
	}
	if !hasGroup || groupName == "" {
		if account != "" {
			u.groups = memberships(account, group)
		}
		return u, nil
	}
	gid, ok := findGroup(groupName, group)
	if !ok {
		return user{}, fmt.Errorf("unable to find group %s: no matching entries in group file", groupName)
	}
	u.gid = gid
	return u, nil
}

// findGroup is the number of the group with that name or number.
func findGroup(name, group string) (uint32, bool) {
	if number, ok := parseID(name); ok {
		return number, true
	}
	for line := range strings.Lines(group) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(f) >= 3 && f[0] == name {
			if gid, ok := parseID(f[2]); ok {
				return gid, true
			}
		}
	}
	return 0, false
}

// memberships are the groups that list account as a member.
func memberships(account, group string) []uint32 {
	var gids []uint32
	for line := range strings.Lines(group) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(f) < 4 || len(gids) == maxGroups {
			continue
		}
		if gid, ok := parseID(f[2]); ok && slices.Contains(strings.Split(f[3], ","), account) {
			gids = append(gids, gid)
		}
	}
	return gids
}

// parseID reads a uid or gid, 0 to 2³¹-1.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err == nil
}

// readAccounts reads a file such as /etc/passwd. One that is missing, or isn't a regular file, is empty.
func readAccounts(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() {
		return "", nil
	}
	b, err := io.ReadAll(io.LimitReader(f, maxAccounts+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxAccounts {
		return "", fmt.Errorf("%s has more than %d bytes", path, maxAccounts)
	}
	return string(b), nil
}
