#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Sees that the source of Linux 7.3 is in the cache: the newest 7.3.y that
# Debian offers, fetched once. Prints the directory as its last line.
set -euo pipefail
. "$(dirname "$0")/common.sh"
. "$(dirname "$0")/apt-view.sh"

PACKAGE=linux-source-7.3

newest_cached() {
	compgen -G "$CACHE/linux-7.3.*" | grep -E '/linux-7\.3\.[0-9]+$' | sort -V | tail -n 1
}

# Debian's packages come and go with each 7.3.y, so all suites are asked.
fetch() {
	local mirror version line uri file sum
	has apt-get || die 'the kernel source is fetched from Debian, which needs apt-get' \
		'name a tree of Linux 7.3 instead: make ... KDIR=/path/to/linux'
	mirror=$(mirror_of bookworm oldstable stable trixie testing sid unstable) ||
		die 'apt names no Debian mirror' 'name a tree of Linux 7.3: make ... KDIR=/path/to/linux'
	apt_view source <<-END
		$mirror trixie-backports
		$mirror forky
		$mirror sid
	END
	say "asking the mirror for $PACKAGE"
	# One suite of the three is enough.
	apt-get -q "${APT_VIEW[@]}" update || say 'warning: not all lists could be read (see above)'
	version=$(apt-cache "${APT_VIEW[@]}" madison "$PACKAGE" | awk '{ print $3 }' | sort -V | tail -n 1)
	[ -n "$version" ] || die "no suite of the mirror offers $PACKAGE" \
		'if its lists could not be read (above): check the network and run the same command again,' \
		'and if a public key is missing: apt-get install debian-archive-keyring' \
		'or name a tree of Linux 7.3: make ... KDIR=/path/to/linux'
	line=$(apt-get "${APT_VIEW[@]}" --print-uris download "$PACKAGE=$version" | grep "^'")
	read -r uri file _ sum <<< "$line"
	uri=${uri//\'/}
	sum=${sum#SHA256:}

	deb=$CACHE/downloads/$file
	mkdir -p "$CACHE/downloads"
	if ! [ -e "$deb" ]; then
		say "fetching $uri"
		curl --fail --location --retry 5 --continue-at - --output "$deb.part" "$uri" ||
			die 'the download was interrupted' 'run the same command again: it goes on where it stopped'
		mv "$deb.part" "$deb"
	fi
	if ! echo "$sum  $deb" | sha256sum --check --quiet; then
		rm "$deb"
		die "$file was damaged and has been removed" 'run the same command again to fetch it anew'
	fi
	tree=$CACHE/linux-$(sed -E 's/^([0-9]+\.[0-9]+\.[0-9]+).*/\1/' <<< "$version")
}

# The package holds one tar.xz; the tree appears under its name when complete.
unpack() {
	local tmp=$tree.tmp
	rm -rf "$tmp"
	mkdir "$tmp"
	say "unpacking $(basename "$deb"), 1.8 GB"
	dpkg-deb --fsys-tarfile "$deb" | tar -xO "./usr/src/$PACKAGE.tar.xz" | xz -dc -T 0 |
		tar -x -C "$tmp" --strip-components=1 --checkpoint=20000 \
			--checkpoint-action='echo=physdma: unpacking: %{}T' ||
		die 'unpacking failed' "is there space in $CACHE? It needs 3 GB. Then run the same command again"
	mv "$tmp" "$tree"
}

lock "$CACHE/lock"
tree=$(newest_cached) || :
if [ -z "$tree" ]; then
	fetch >&2
	[ -d "$tree" ] || unpack >&2
fi
echo "$tree"
