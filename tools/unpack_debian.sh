#!/bin/sh
# Unpack a program of Debian's into a folder, without root: unpack_debian.sh FOLDER PROGRAM PACKAGE…
# PROGRAM is its path there; FOLDER/run starts it. What the packages need and is not installed here is unpacked with them. apt-get checks
# all of them against the hashes of the distribution's signed index. It tries once: where that fails, FOLDER/why-not says why, and the tests
# that need it are skipped with that reason.
set -u
folder=$PWD/$1 program=$2 && shift 2
[ -e "$folder/run" ] || [ -e "$folder/why-not" ] && exit 0
rm -rf "$folder" "$folder.new"
mkdir -p "$folder.new" && cd "$folder.new" || exit 0

give_up() {
	rm -rf -- * && echo "$1; to try again: make clean" >why-not
}

unpack() {
	command -v apt-get >/dev/null && command -v dpkg >/dev/null || { give_up "there is no apt-get to fetch $1 with"; return; }
	missing=$(apt-get -qq --simulate --no-install-recommends install "$@" 2>/dev/null | awk '/^Inst/ { print $2 }')
	timeout 120 apt-get -qq download $(printf '%s\n' "$@" $missing | sort -u) >log 2>&1 ||
		{ give_up "apt-get download $1 failed: $(tail -n 1 log)"; return; }
	for package in *.deb; do dpkg -x "$package" .; done
	folders=$(find usr lib -name '*.so*' -type f -exec dirname {} \; 2>/dev/null | sort -u | sed 's|^|$here/|' | paste -s -d:)
	printf '#!/bin/sh\nhere=$(cd "$(dirname "$0")" && pwd)\nLD_LIBRARY_PATH=%s exec "$here/%s" "$@"\n' "$folders" "$program" >run
	chmod +x run && ./run --version >log 2>&1 || { give_up "Debian's $1 does not run here: $(tail -n 1 log)"; return; }
	rm -f -- *.deb log
}

unpack "$@"
mv "$folder.new" "$folder"
