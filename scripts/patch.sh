#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Kernel patches in patches/, one idea each.
#
#   patch.sh new NAME           a new, empty patch, the last before the hook
#   patch.sh add FILE [PATCH]   FILE (path in the kernel) will be changed by PATCH
#   patch.sh refresh [PATCH]    takes the edits in build/linux into PATCH
#
# PATCH is the last before the hook unless named. New files count too: add
# them before they are written.
set -euo pipefail
. "$(dirname "$0")/common.sh"
. "$(dirname "$0")/quilt.sh"

HOOK=physdma-hook.patch		# those before it do not need this project

# take_out_to PATCH: makes PATCH the topmost one; edits of files of the patches
# above that are in no patch yet stay in the tree
take_out_to() {
	local top edits
	while top=$(applied | tail -n 1) && [ "$top" != "$1" ]; do
		[ -n "$top" ] || die "$1 is not applied" "see patches/series"
		edits=
		# A new patch has no files yet, of which quilt shows no differences.
		[ -z "$(q "$SERIES" files "$top")" ] ||
			edits=$(q "$SERIES" diff -z -P "$top" --no-timestamps --no-index -p ab)
		q "$SERIES" pop -q -f > /dev/null
		[ -z "$edits" ] || patch -d "$LINUX" -p1 -s --no-backup-if-mismatch <<< "$edits" ||
			die "the edits of files of $top do not fit without it" "they were: $edits"
	done
}

before_hook() { applied | sed "/^$HOOK\$/,\$d" | tail -n 1; }

[ -d "$LINUX/.pc" ] || die 'there is no patched kernel tree yet' 'run: make linux'
# shellcheck disable=SC2046 # names of patches have no spaces
keep_times $(applied)
case ${1:-} in
new)
	[ -n "${2:-}" ] || die 'which name?' 'make patch-new NAME=rust-block-mq-add-something'
	name=${2%.patch}.patch
	[ ! -e "$SERIES/$name" ] || die "patches/$name is there already"
	take_out_to "$(before_hook)"
	q "$SERIES" new "$name"
	author=$(git -C "$ROOT" var GIT_AUTHOR_IDENT 2> /dev/null | sed 's/>.*/>/') ||
		author='Your Name <you@example.org>'
	cat > "$SERIES/$name" <<-END
		From: $author
		Subject: [PATCH] area: what it does

		Why it is needed.

		Signed-off-by: $author
		---
	END
	say "write its subject and reason at the top of patches/$name; then make patch-add FILE=..."
	;;
add)
	[ -n "${2:-}" ] || die 'which file?' 'make patch-add FILE=rust/kernel/lib.rs'
	[ -d "$LINUX/$(dirname "$2")" ] ||
		die "the kernel has no directory $(dirname "$2")" 'FILE is a path in the kernel tree'
	[ -e "$LINUX/$2" ] || say "the kernel has no $2 yet: the patch will add it"
	name=${3:-$(before_hook)}
	take_out_to "$name"
	# It may be one of its files already.
	q "$SERIES" files "$name" | grep -qxF "$2" || q "$SERIES" add "$2"
	say "edit build/linux/$2, then: make patch-refresh PATCH=$name"
	;;
refresh)
	name=${2:-$(before_hook)}
	take_out_to "$name"
	q "$SERIES" refresh
	;;
*)
	die 'usage: patch.sh new NAME | add FILE [PATCH] | refresh [PATCH]'
	;;
esac
push_all
give_times_back
remember_applied
