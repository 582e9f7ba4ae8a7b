# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# A private view of Debian's archive: packages of suites that the machine's
# own apt configuration does not name, without touching that configuration.
# To be sourced after common.sh.

DEBIAN_KEYS=/usr/share/keyrings/debian-archive-keyring.gpg

# mirror_of SUITE...: the base address from which the machine gets the first
# of these suites that it is configured for. Works before any `apt-get update`.
mirror_of() {
	local lists uris suite
	lists=$(mktemp -d)
	mkdir "$lists/partial"
	uris=$(apt-get -o Dir::State::Lists="$lists" update --print-uris 2> /dev/null) || uris=
	rm -rf "$lists"
	for suite; do
		sed -n "s|^'\(.*\)/dists/$suite/InRelease'.*|\1|p" <<< "$uris" | head -n 1 | grep . && return
	done
	return 1
}

# apt_view NAME, with lines "MIRROR SUITE" on stdin: sets the array APT_VIEW,
# the options that make apt-get and apt-cache see these suites and no other.
apt_view() {
	local dir=$CACHE/apt/$1 mirror suite
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	while read -r mirror suite; do
		echo "deb [signed-by=$DEBIAN_KEYS] $mirror $suite main"
	done > "$dir/sources.list"
	# shellcheck disable=SC2034 # used by those who source this
	APT_VIEW=(
		-o Dir::Etc::SourceList="$dir/sources.list"
		-o Dir::Etc::SourceParts=/dev/null
		-o Dir::Etc::Preferences=/dev/null
		-o Dir::Etc::PreferencesParts=/dev/null
		-o Dir::State::Lists="$dir/lists"
		-o Dir::Cache="$dir/cache"
		-o Acquire::Languages=none
		-o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
		-o APT::Sandbox::User=root
		-o Acquire::Retries=3
	)
}
