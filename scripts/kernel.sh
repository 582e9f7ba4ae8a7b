#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Configures and builds build/linux.
#
# Usage: kernel.sh kernel               into build/kernel
#        kernel.sh kernel-debug         into build/kernel-debug, with scripts/debug.config
#        kernel.sh kernel-kind          into build/kernel-kind, with CONFIG_PHYSDMA_BVEC_KIND
#        kernel.sh kernel-without NAME  into build/kernel-without, without what
#                                       scripts/without/NAME.config takes away
#        kernel.sh kernel-arm           kernel::physdma for ARM into build/kernel-arm: physical
#                                       addresses of 32 bits, and no SWIOTLB. Compiled only
#        ... config                     configures only
#        ... doc                        then makes the reference of the kernel crate
set -euo pipefail
. "$(dirname "$0")/common.sh"

# What is left of an interrupted build holds it too, until that has ended.
lock "$BUILD/lock"

NAME=$1
OUT=$BUILD/$NAME
LINES_OF_BUILD=2500	# that a whole build writes
FRAGMENTS=("$ROOT/scripts/kernel.config")
ASKED=${#FRAGMENTS[@]}	# how many of them are not to be checked: see check_config
TARGETS=(bzImage modules)
case $NAME in
kernel) ASKED=0 ;;
kernel-debug) FRAGMENTS+=("$ROOT/scripts/debug.config") ASKED=0 ;;
kernel-kind) FRAGMENTS+=("$ROOT/scripts/kind.config") ASKED=0 ;;
kernel-arm)
	FRAGMENTS=("$ROOT/scripts/arm.config") ASKED=0 TARGETS=(prepare)
	export ARCH=arm
	;;
# What depends on what is missing goes with it.
kernel-without) FRAGMENTS+=("$ROOT/scripts/without/$2.config") && shift ;;
*) die "there is no kernel $NAME" ;;
esac

# What the configuration follows from; the same again need not be done again.
inputs() {
	cat "${FRAGMENTS[@]}"
	find "$ROOT/Kconfig" "$ROOT/drivers" "$ROOT/tests" "$ROOT/bench" "$ROOT/samples" \
		-name 'Kconfig*' -exec cat {} + 2> /dev/null || :
	cat "$LINUX/.physdma-origin"
	grep -l "^+++ .*Kconfig" "$ROOT/patches/"*.patch | xargs -r cat
	echo "$LLVM" "$RUSTC" "$("$RUSTC" --version)"
}

make_config() {
	local -x KCONFIG_CONFIG=$1
	kmake "$OUT" rustavailable &&
		kmake "$OUT" tinyconfig &&
		(cd "$OUT" && "$LINUX/scripts/kconfig/merge_config.sh" -Q -m "$1" "${FRAGMENTS[@]}") &&
		kmake "$OUT" olddefconfig
}

# Every option asked for must be in the result; the last fragment wins.
check_config() {
	cat "${FRAGMENTS[@]:ASKED}" | awk -v result="$1" '
		function option(line) { return line ~ /^CONFIG_/ ? substr(line, 1, index(line, "=") - 1) : $2 }
		/^CONFIG_.*=/ || /^# CONFIG_.* is not set$/ {
			want[option($0)] = ($0 ~ /^#/ || $0 ~ /=n$/) ? "n" : substr($0, index($0, "=") + 1)
		}
		END {
			while ((getline < result) > 0)
				if ($0 ~ /^CONFIG_/) have[option($0)] = substr($0, index($0, "=") + 1)
			for (o in want) {
				is = (o in have) ? have[o] : "n"
				if (is != want[o]) { print o ": asked for " want[o] ", got " is; bad = 1 }
			}
			exit bad
		}'
}

configure() {
	local new=$OUT/.config.new stamp=$OUT/.physdma-config sum
	sum=$(inputs | sha256sum)
	[ -e "$OUT/.config" ] && [ "$(cat "$stamp" 2> /dev/null)" = "$sum" ] && return
	mkdir -p "$OUT"
	rm -f "$new"
	say "configuring build/$NAME"
	logged "$REPORTS/$NAME-config.log" "configuring build/$NAME" make_config "$new"
	check_config "$new" || die 'the kernel cannot be configured as the fragments ask (see above)' \
		'an option may depend on another that is off, or have another name in this tree' \
		"the fragments: ${FRAGMENTS[*]#"$ROOT/"}"
	# The same configuration keeps its time, or much would be built again.
	if cmp -s "$new" "$OUT/.config"; then rm "$new"; else mv "$new" "$OUT/.config"; fi
	rm -f "$new.old"
	echo "$sum" > "$stamp"
}

# Much of it is the same as in the first one.
if [ "$NAME" = kernel-kind ] || [ "$NAME" = kernel-without ]; then
	if ! [ -e "$OUT" ] && [ -e "$BUILD/kernel/vmlinux" ]; then
		say "build/$NAME begins as a copy of build/kernel"
		rm -rf "$OUT.tmp"
		cp -a --reflink=auto "$BUILD/kernel" "$OUT.tmp"
		rm -f "$OUT.tmp/.physdma-config"
		mv "$OUT.tmp" "$OUT"
	fi
fi
configure
[ "${2:-}" = config ] && exit
LOG=$REPORTS/$NAME-build.log
if [ -e "$OUT/vmlinux" ]; then
	say "building what changed in build/$NAME"
elif [ -e "$OUT/init/main.o" ]; then
	say "going on with build/$NAME; its output is in ${LOG#"$ROOT/"}"
else
	say "building build/$NAME: 10 to 20 minutes on two CPUs; its output is in ${LOG#"$ROOT/"}"
	EXPECT=$LINES_OF_BUILD
fi
start=$SECONDS
logged "$LOG" "building build/$NAME" kmake "$OUT" -j"$JOBS" "${TARGETS[@]}"
say "build/$NAME is ready ($((SECONDS - start)) s)"

if [ "${2:-}" = doc ]; then
	logged "$REPORTS/$NAME-doc.log" 'making the reference' kmake "$OUT" rustdoc
	say "the reference begins at $(find "$LINUX/Documentation/output" "$OUT/Documentation/output" \
		-path '*/kernel/physdma/index.html' 2> /dev/null | head -n 1)"
fi
