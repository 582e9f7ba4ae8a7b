#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# rustfmt, clippy, checkpatch, shellcheck, Python's syntax and licences. What
# was clean and has not changed is not looked at again.
set -euo pipefail
. "$(dirname "$0")/common.sh"

DONE=$BUILD/lint	# one file for each check that was clean, named by its inputs
OUT=$BUILD/kernel
bad=0

mkdir -p "$DONE"
cd "$ROOT"

# clean NAME INPUT... -- COMMAND...: runs the command unless it was clean with
# the same inputs (files) before
clean() {
	local name=$1 inputs=() stamp
	shift
	while [ "$1" != -- ]; do inputs+=("$1"); shift; done
	shift
	stamp=$DONE/$(printf '%s\n' "$name" "$*" "${inputs[@]}" |
		cat - "${inputs[@]}" "$0" | sha256sum | cut -c 1-40)
	[ -e "$stamp" ] && return
	if "$@" < /dev/null; then
		: > "$stamp"
	else
		printf 'physdma: lint: %s has complaints (above)\n' "$name" >&2
		bad=1
	fi
}

# The source files of this project, and those of the kernel that it patches.
ours() {
	comm -23 <(git ls-files --cached --others --exclude-standard -- "$@" | sort -u) \
		<(git ls-files --deleted | sort)
}
patched() {
	sed -n "s|^+++ [^/]*/\([^	]*$1\)\(	.*\)*$|build/linux/\1|p" patches/*.patch | sort -u
}

# From standard input, so that files that this one names are not followed; with
# that, --check shows what is wrong, but does not fail.
rustfmt_check() {
	diff -u --label "$1" --label 'by rustfmt' "$1" \
		<("$(beside_rustc rustfmt)" --edition=2021 --config-path="$LINUX/.rustfmt.toml" < "$1")
}

# Without a git tree, which checkpatch would take the patches for a part of; so
# it cannot look up what Fixes: names.
checkpatch() {
	env GIT_DIR=/nonexistent perl "$LINUX/scripts/checkpatch.pl" --root="$LINUX" --strict \
		--quiet --ignore EMBEDDED_FILENAME,UNKNOWN_COMMIT_ID "$@"
}

licences() {
	local missing
	missing=$(grep -L 'SPDX-License-Identifier' "$@" || :)
	[ -z "$missing" ] || { printf 'no SPDX line in:\n%s\n' "$missing"; return 1; }
}

# The command that built a crate, with clippy in place of rustc and nothing
# but metadata made: this leaves the kernel's objects alone.
clippy() {
	local command=$1
	sed -n "1s/^savedcmd_[^ ]* := *//p" "$command" | cut -d ';' -f 1 |
		sed -E "s| $RUSTC | $(beside_rustc clippy-driver) -Dwarnings |; s/--(emit=|out-dir )[^ ]*//g; s/\\\$\\\$/\$/g" \
			> "$DONE/command"
	grep -q clippy-driver "$DONE/command" ||
		{ echo "${command#"$OUT/"} does not say that RUSTC=$RUSTC built it"; return 1; }
	(cd "$OUT" && RUSTC_BOOTSTRAP=1 CLIPPY_CONF_DIR=$LINUX \
		sh -c "$(cat "$DONE/command") --emit=metadata --out-dir=$DONE")
}

mapfile -t rust < <(ours '*.rs')
mapfile -t kernel_rust < <(patched '\.rs')
mapfile -t c < <(ours '*.c' '*.h')
mapfile -t shell < <(ours '*.sh' .ci/run)
mapfile -t python < <(ours '*.py')
mapfile -t all < <(ours | grep -vE '^(COPYING|patches/|Documentation/.*\.(svg|png))|\.(json|lock)$')

for file in "${rust[@]}" "${kernel_rust[@]}"; do
	clean "rustfmt $file" "$file" -- rustfmt_check "$file"
done
for file in patches/*.patch; do
	clean "checkpatch $file" "$file" -- checkpatch "$file"
done
for file in "${c[@]}"; do
	# Tracepoints are written like no other code.
	case $file in include/trace/*) as=--ignore=OPEN_ENDED_LINE,PARENTHESIS_ALIGNMENT;; *) as=; esac
	clean "checkpatch $file" "$file" -- checkpatch ${as:+"$as"} -f "$file"
done
clean shellcheck "${shell[@]}" -- shellcheck "${shell[@]}"
clean python "${python[@]}" -- python3 -c \
	'import ast, sys; [ast.parse(open(f).read(), f) for f in sys.argv[1:]]' "${python[@]}"
clean licences "${all[@]}" -- licences "${all[@]}"

clean 'clippy kernel' "${kernel_rust[@]}" "${rust[@]}" "$OUT/rust/.kernel.o.cmd" -- \
	clippy "$OUT/rust/.kernel.o.cmd"
mapfile -t commands < <(grep -l 'RUST_MODFILE' "$OUT"/physdma/{,*/}*/.*.o.cmd 2> /dev/null)
[ ${#commands[@]} -gt 0 ] || die 'build/kernel has no module in Rust to lint' 'run: make kernel'
for command in "${commands[@]}"; do
	clean "clippy $(basename "$command" .o.cmd)" "${kernel_rust[@]}" "${rust[@]}" "$command" -- \
		clippy "$command"
done

[ $bad -eq 0 ] || die 'lint has complaints' 'mend what is named above and run make lint again'
say "lint is clean"
