# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# patches/ on the kernel tree. To be sourced after common.sh.
#
# APPLIED holds the patches as they are in the tree, so that they can be
# taken out again after patches/ has changed (by git pull, say).

SERIES=$ROOT/patches
APPLIED=$BUILD/patches.applied

# q DIR ARGUMENT...: quilt on the kernel tree, its patches being those in DIR
q() {
	local dir=$1
	shift
	mkdir -p "$LINUX/.pc"
	realpath --relative-to="$LINUX" "$dir" > "$LINUX/.pc/.quilt_patches"
	echo series > "$LINUX/.pc/.quilt_series"
	echo 2 > "$LINUX/.pc/.version"
	(cd "$LINUX" && QUILT_REFRESH_ARGS='--no-timestamps --no-index -p1' QUILT_DIFF_OPTS=-p quilt --quiltrc - "$@")
}

series() { sed 's/#.*//; s/[[:space:]].*//; /^$/d' "$SERIES/series"; }
applied() { cat "$LINUX/.pc/applied-patches" 2> /dev/null || :; }

# agrees DIR PATCH: the tree holds this patch as DIR has it, and nothing more
agrees() {
	local diff
	[ -e "$1/$2" ] && diff=$(q "$1" diff -z -P "$2" 2> /dev/null) && [ -z "$diff" ]
}

remember_applied() {
	local patch
	mkdir -p "$APPLIED"
	for patch in $(applied); do cp "$SERIES/$patch" "$APPLIED/"; done
	applied > "$APPLIED/series"
}

# Patching gives files new times; those that end as they were get the old
# ones back, so that make does not build them again.
keep_times() { # keep_times PATCH...: before the patches are taken out
	local patch
	KEPT=$(mktemp -d)
	for patch; do
		[ -d "$LINUX/.pc/$patch" ] || continue
		(cd "$LINUX/.pc/$patch" && find . -type f ! -name .timestamp) |
			(cd "$LINUX" && xargs -r -d '\n' cp -p --parents -t "$KEPT" 2> /dev/null) || :
	done
}

give_times_back() {
	local file
	while read -r file; do
		if cmp -s "$KEPT/$file" "$LINUX/$file"; then touch -r "$KEPT/$file" "$LINUX/$file"; fi
	done < <(cd "$KEPT" && find . -type f)
	rm -rf "$KEPT"
}

push_all() {
	[ "$(applied)" != "$(series)" ] || return 0
	q "$SERIES" push -q -a || die 'a kernel patch does not apply (see above)' \
		'the patches before it are in the tree; mend it there (quilt push -f, edit, quilt refresh)' \
		'or in patches/, and run the same command again'
}

# sync_patches: makes the tree hold patches/ as it is now
sync_patches() {
	local -a want have out
	local patch n=0 i
	for patch in $(applied); do
		cmp -s "$SERIES/$patch" "$APPLIED/$patch" && continue
		if agrees "$SERIES" "$patch"; then
			# Refreshed by quilt itself: the tree has it already.
			mkdir -p "$APPLIED"
			cp "$SERIES/$patch" "$APPLIED/"
		fi
	done
	mapfile -t want < <(series)
	mapfile -t have < <(applied)
	while [ $n -lt ${#have[@]} ] && [ "${have[n]}" = "${want[n]:-}" ] &&
		cmp -s "$SERIES/${have[n]}" "$APPLIED/${have[n]}"; do
		n=$((n + 1))
	done
	[ $n -lt ${#have[@]} ] || [ $n -lt ${#want[@]} ] || return 0

	out=("${have[@]:n}")
	for ((i = ${#have[@]} - 1; i >= 0; i--)); do
		agrees "$APPLIED" "${have[i]}" ||
			die "build/linux has edits of files of ${have[i]} that are in no patch" \
				"put them in: make patch-refresh PATCH=${have[i]}" \
				'or throw the tree away: rm -r build/linux, and run the same command again'
	done
	keep_times "${out[@]}"
	if [ ${#out[@]} -gt 0 ]; then
		say "taking out: ${out[*]}"
		printf '%s\n' "${have[@]}" > "$APPLIED/series"
		if [ $n -eq 0 ]; then
			q "$APPLIED" pop -q -a > /dev/null
		else
			q "$APPLIED" pop -q "${have[n - 1]}" > /dev/null
		fi
	fi
	say "applying: ${want[*]:n}"
	push_all
	give_times_back
	remember_applied
}
