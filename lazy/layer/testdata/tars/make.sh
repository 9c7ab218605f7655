#!/bin/sh
# Makes the archives of this folder with GNU tar 1.34. Needs root, for devices and attributes, and a file system with both.
#	make.sh OUT
set -eu
out=$(realpath "$1")
in=$(mktemp -d)
cd "$in"
chars() { printf "%$2s" | tr ' ' "$1"; }
tar() { command tar --sort=name --owner=u:1000 --group=g:1001 "$@"; }
pax='--format=posix --pax-option=delete=atime,delete=ctime,exthdr.name=PaxHeaders/%f'

deep=d/$(chars 1 30)/$(chars 2 30)/$(chars 3 30)
mkdir -p "$deep"
echo hello >"$deep/$(chars n 120)"
ln -s "$deep/$(chars n 120)/$deep" l
ln "$deep/$(chars n 120)" h
printf abc >f
mkdir -m 1777 tmp
prefix=$(chars p 100)
mkdir "$prefix"
printf prefix >"$prefix/short"
mkfifo -m 600 p
mknod -m 644 c c 5 1
mknod -m 600 b b 259 70000
find . -exec touch -hd @1000000000.25 {} +
tar -c --format=v7 -f "$out/v7.tar" f tmp
tar -c --format=ustar -f "$out/ustar-prefix.tar" "$prefix/short" c b p
tar -c --format=gnu -f "$out/gnu-long.tar" "$deep/$(chars n 120)" h l
tar -c $pax -f "$out/pax-long.tar" "$deep/$(chars n 120)" h l
touch -d @-1000000000 f
command tar -c --format=gnu --owner=u:3000000 --group=g:4294967294 -f "$out/gnu-base256.tar" f

# seven pieces, more than a header has room for, and a hole at the end
truncate -s 1000000 s
for i in 1 2 3 4 5 6 7; do
	printf 'piece %d' $i | dd of=s bs=1 seek=$((i * 131072)) conv=notrunc status=none
done
truncate -s 8193M huge
printf end | dd of=huge bs=1 seek=$((8193 * 1024 * 1024 - 3)) conv=notrunc status=none
touch -d @1000000000 s huge
tar -c --format=gnu --sparse -f "$out/sparse-gnu.tar" s f
tar -c --format=gnu --sparse -f "$out/sparse-gnu-huge.tar" huge
for v in 0.0 0.1 1.0; do
	tar -c $pax --sparse --sparse-version=$v -f "$out/sparse-$v.tar" s f
done
tar -c $pax --sparse -f "$out/sparse-1.0-huge.tar" huge

printf x >x
setfattr -n user.a -v 0x00ff0a x
setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 x
touch -d @1000000000 x
tar -c $pax --xattrs '--xattrs-include=*' -f "$out/pax-xattrs.tar" x
cd "$out"
gzip -9n ./*.tar
rm -r "$in"
