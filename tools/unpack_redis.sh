#!/bin/sh
# Unpack Debian's Redis server, which speaks TLS as those of wheels do not, into a folder, without root: unpack_redis.sh FOLDER
# apt-get checks the packages against the hashes of the distribution's signed index. It tries once: where that fails, FOLDER/why-not says
# why, and the tests that need it are skipped with that reason.
set -u
[ -d "$1" ] && exit 0
new=$PWD/$1.new
mkdir -p "$new" && cd "$new" || exit 0

give_up() {
	rm -rf -- * && echo "$1; to try again: make clean" >why-not
}

unpack() {
	command -v apt-get >/dev/null && command -v dpkg >/dev/null || { give_up "there is no apt-get to fetch one with"; return; }
	timeout 60 apt-get -qq download redis-server redis-tools liblzf1 libjemalloc2 >log 2>&1 ||
		{ give_up "apt-get download redis-server failed: $(tail -n 1 log)"; return; }
	for package in *.deb; do dpkg -x "$package" .; done
	libraries=$(find "$PWD/usr/lib" -name 'libjemalloc.so*' -exec dirname {} \; | head -n 1)
	LD_LIBRARY_PATH=$libraries usr/bin/redis-server --version >log 2>&1 ||
		{ give_up "Debian's redis-server does not run here: $(tail -n 1 log)"; return; }
	rm -f -- *.deb log
}

unpack
mv "$new" "${new%.new}"
