#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Makes build/linux: a copy of the kernel's source with patches/ applied and
# this project linked into it.
#
# KDIR names another pristine tree of Linux 7.3 than the one in the cache. It
# is only read, and remembered until another is named.
set -euo pipefail
. "$(dirname "$0")/common.sh"
. "$(dirname "$0")/link.sh"
. "$(dirname "$0")/quilt.sh"

# What is left of an interrupted build holds it too, until that has ended.
lock "$BUILD/lock"

ORIGIN=$LINUX/.physdma-origin	# which tree it is a copy of

# version_of TREE: the version of the kernel that it is
version_of() {
	local version
	version=$(sed -n '2,4s/.*= *//p' "$1/Makefile" 2> /dev/null | paste -sd . || :)
	case $version in
	[0-9]*.[0-9]*.[0-9]*) echo "$version" ;;
	*) die "$1 is not a kernel tree" 'name one with KDIR=' ;;
	esac
}

copy_tree() {
	local from=$1 tmp=$LINUX.tmp version
	version=$(version_of "$from")
	case $version in
	7.3.*) ;;
	*) say "warning: $from is Linux $version; the patches are made for 7.3" ;;
	esac
	say "copying Linux $version to build/linux, 1.8 GB"
	logged "$REPORTS/copy.log" 'copying' \
		rsync -a --delete --out-format='%n' --exclude=/.git --exclude=/.pc "$from/" "$tmp/"
	if [ -e "$tmp/.config" ]; then
		logged "$REPORTS/mrproper.log" 'removing what was built in the tree' \
			make -C "$tmp" mrproper
	fi
	realpath "$from" > "$tmp/$(basename "$ORIGIN")"
	rm -rf "$APPLIED"
	mv "$tmp" "$LINUX"
}

# Files of build/linux that differ from the tree that it is a copy of, and that
# no patch changes.
edited_outside_patches() {
	local file from
	from=$(cat "$ORIGIN")
	while read -r file; do
		compgen -G "$LINUX/.pc/*/$file" > /dev/null ||
			cmp -s "$from/$file" "$LINUX/$file" || echo "$file"
	done < <(cd "$LINUX" && find . -newer "$ORIGIN" -type f \
		! -path './.pc/*' ! -name '*.pyc' -printf '%P\n')
}

if [ -e "$LINUX" ] && ! [ -e "$ORIGIN" ]; then
	die 'build/linux was not made by this script' 'remove or rename it'
fi
if [ -e "$LINUX" ] && [ -n "${KDIR:-}" ] && [ "$(realpath "$KDIR")" != "$(cat "$ORIGIN")" ]; then
	version_of "$KDIR" > /dev/null
	for patch in $(applied); do
		agrees "$APPLIED" "$patch" || die "build/linux has edits of files of $patch that are in no patch" \
			"put them in: make patch-refresh PATCH=$patch" 'or remove build/linux yourself'
	done
	edited=$(edited_outside_patches)
	[ -z "$edited" ] || die 'build/linux has edits that are in no patch:' "$edited" \
		'put them in with make patch-add and patch-refresh, or remove build/linux yourself'
	say "build/linux is a copy of $(cat "$ORIGIN"): replacing it"
	rm -rf "$LINUX"
fi
if ! [ -e "$ORIGIN" ]; then
	if [ -n "${KDIR:-}" ]; then
		from=$KDIR
	else
		from=$("$ROOT/scripts/source.sh")
	fi
	copy_tree "$from"
fi

sync_patches

link_project
