# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# shellcheck disable=SC2034 # what is set here is used by those who source it
#
# What every set-up script shares: where things are, which tools are meant,
# how to talk. To be sourced after `set -euo pipefail`.

ROOT=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
BUILD=$ROOT/build
REPORTS=$BUILD/reports
LINUX=$BUILD/linux
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/physdma
JOBS=$(nproc)

# mkfs, debugfs and nvme live there, which a user's PATH may not name.
PATH=$PATH:/usr/sbin:/sbin

# The variables of the make that runs these scripts are not for the kernel's.
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES MAKEFILES

say() { printf 'physdma: %s\n' "$*"; }

# die WHAT [WHAT TO DO]...
die() {
	printf 'physdma: error: %s\n' "$1" >&2
	shift
	[ $# -eq 0 ] || printf 'physdma:   %s\n' "$@" >&2
	exit 1
}

has() { command -v "$1" > /dev/null; }

# version_at_least HAVE WANT
version_at_least() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

# One set-up at a time: the second waits for the first.
lock() {
	mkdir -p "$(dirname "$1")"
	exec 9> "$1"
	flock -n 9 || { say "waiting for another run that holds $1"; flock 9; }
}

case $ROOT$CACHE in
*[[:space:]:]*) die "$ROOT or $CACHE has a space or a colon in its name" \
	"which the kernel's build does not take: move this directory, or name a cache by XDG_CACHE_HOME" ;;
esac

# logged LOG WHAT COMMAND...: runs the command with its output in LOG, and
# says every ten seconds how far it is: of about EXPECT lines, where that is
# known. On failure shows what went wrong.
logged() {
	local log=$1 what=$2 start=$SECONDS ticker rc=0
	shift 2
	mkdir -p "$(dirname "$log")"
	: > "$log"
	(
		while sleep 10; do
			say "$what: $((SECONDS - start)) s, $(wc -l < "$log")${EXPECT:+ of about $EXPECT}" \
				"lines, now: $(tail -n 1 "$log" | cut -c 1-60)"
		done
	) 9>&- &
	ticker=$!
	# shellcheck disable=SC2064 # the value of now
	trap "kill $ticker 2> /dev/null || :" EXIT
	"$@" < /dev/null >> "$log" 2>&1 || rc=$?
	kill $ticker 2> /dev/null || :
	wait $ticker 2> /dev/null || :
	trap - EXIT
	[ $rc -ne 0 ] || return 0
	grep -nE -A 12 '(error|Error)(\[E[0-9]+\])?:|Error [0-9]|\*\*\* ' "$log" | tail -n 60 >&2 ||
		tail -n 30 "$log" >&2
	die "$what failed (exit code $rc)" "the whole output is in ${log#"$ROOT/"}" \
		"mend what it names and run the same command again"
}

# The toolchain, each part of which can be named on make's command line. What
# was named is not replaced by anything else. A rustup toolchain may stand first in PATH and lack the source of core, so
# Debian's own is meant where there is one.
NAMED_TOOLS=(${RUSTC:+RUSTC} ${BINDGEN:+BINDGEN} ${QEMU:+QEMU})
LLVM=${LLVM:--22}
if [ -z "${RUSTC:-}" ]; then
	if [ -e /etc/debian_version ]; then RUSTC=/usr/bin/rustc; else RUSTC=rustc; fi
fi

# beside_rustc TOOL: the tool that belongs to RUSTC
beside_rustc() {
	local dir
	dir=$(dirname "$(command -v "$RUSTC" || echo "$RUSTC")")
	if [ -x "$dir/$1" ]; then echo "$dir/$1"; else echo "$1"; fi
}

# A compiler of LLVM by the kernel's convention: LLVM=1, LLVM=-22 or LLVM=/dir/
llvm_tool() {
	case $LLVM in
	*/) echo "$LLVM$1" ;;
	-*) echo "$1$LLVM" ;;
	*) echo "$1" ;;
	esac
}

BINDGEN_WANTED=0.71.1
bindgen_ok() {
	has "$1" && version_at_least "$("$1" --version | cut -d ' ' -f 2)" "$BINDGEN_WANTED"
}
if [ -z "${BINDGEN:-}" ]; then
	BINDGEN=$CACHE/tools/bin/bindgen
	if ! [ -x "$BINDGEN" ] && bindgen_ok bindgen; then BINDGEN=$(command -v bindgen); fi
fi

QEMU=${QEMU:-qemu-system-x86_64}

# kmake OUTDIR TARGET...: the kernel's make, with the toolchain set
kmake() {
	local out=$1
	shift
	make -C "$LINUX" O="$out" LLVM="$LLVM" RUSTC="$RUSTC" RUSTFMT="$(beside_rustc rustfmt)" \
		RUSTDOC="$(beside_rustc rustdoc)" CLIPPY_DRIVER="$(beside_rustc clippy-driver)" \
		BINDGEN="$BINDGEN" "$@"
}
