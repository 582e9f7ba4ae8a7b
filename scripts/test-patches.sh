#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Applies the patches one by one to a copy of the pristine kernel, without any
# fuzz, and after each builds what it touches: its objects, the kernel crate,
# and the Rust drivers of the kernel that use it. Warnings are errors.
#
# This project comes in with the hook, so those before it must not need it. From
# there on each builds a whole kernel, which is booted with the suites and doc
# examples: all but those of what comes with a later patch.
#
# Then runs the suite of the kernel's own that one of them adds a case to, by
# kunit.py.
#
# FROM=PATCH builds from that patch on; those before it are only applied.
set -euo pipefail
. "$(dirname "$0")/common.sh"
. "$(dirname "$0")/link.sh"

SERIES=$ROOT/patches
HOOK=physdma-hook.patch
DIR=$BUILD/test-patches
LOGS=$REPORTS/test-patches
ORIGIN=$LINUX/.physdma-origin
FRAGMENT=$DIR/fragment

lock "$DIR/lock"
mapfile -t patches < <(sed 's/#.*//; s/[[:space:]].*//; /^$/d' "$SERIES/series")
from=${FROM:-${patches[0]}}
[[ " ${patches[*]} " == *" $from "* ]] || die "patches/series has no $from" 'FROM= names one of it'

pristine=${KDIR:-$(cat "$ORIGIN" 2> /dev/null || "$ROOT/scripts/source.sh" | tail -n 1)}
LINUX=$DIR/linux	# what kmake and link are about from here on
OUT=$DIR/kernel-patched
mkdir -p "$LOGS"

# The build looks at times: what an earlier run patched has changed now.
say "copying $pristine to build/test-patches/linux"
changed=$DIR/changed
if ! [ -e "$LINUX/Makefile" ]; then changed=/dev/null; fi
rsync -a --delete --out-format='%n' --exclude=/.git --exclude=/.pc "$pristine/" "$LINUX/" > "$changed"
(cd "$LINUX" && grep -v '/$' "$changed" | xargs -r -d '\n' touch -ch) || :

configure() {
	kmake "$OUT" -s tinyconfig
	(cd "$OUT" && "$LINUX/scripts/kconfig/merge_config.sh" -Q -m .config "$FRAGMENT")
	kmake "$OUT" -s olddefconfig
}

# What the project's options are is not known before the hook.
{
	grep -vE '_(PHYSDMA|RNVME|BLOCK_PHYS)|DOCTESTS' "$ROOT/scripts/kernel.config"
	printf 'CONFIG_%s\n' WERROR=y BLK_DEV_RUST_NULL=m SAMPLES=y SAMPLES_RUST=y \
		SAMPLE_RUST_DRIVER_PCI=m SAMPLE_RUST_DMA=m SAMPLE_RUST_MISC_DEVICE=m \
		SAMPLE_RUST_DRIVER_FAUX=m
} > "$FRAGMENT"
logged "$LOGS/config.log" 'configuring' configure

touched() { sed -n "s|^+++ [^/]*/\([^	]*\).*|\1|p" "$SERIES/$1"; }

# objects PATCH: the C objects of the kernel that it changes
objects() { touched "$1" | sed -n '/^rust\//d; s/\.c$/.o/p'; }

# with OPTION...: has the kernel that is built from here on have those, by patterns
with() {
	local option
	for option; do
		grep -E "^CONFIG_$option=" "$ROOT/scripts/kernel.config" >> "$FRAGMENT" ||
			die "scripts/kernel.config has no $option" 'see who comes with what in test-patches.sh'
	done
	logged "$LOGS/config-$patch.log" "configuring with $*" configure
}

# joins PATCH: what of the project comes in with it
joins() {
	case $1 in
	"$HOOK")
		link_project
		echo '# CONFIG_PHYSDMA_PAGES_KUNIT_TEST is not set' >> "$FRAGMENT"
		with 'PHYSDMA(_DEBUGFS|_IVSHMEM|_EDU|_REFUSALS|_KUNIT_TEST)?' RUST_KERNEL_DOCTESTS
		targets=(bzImage modules)
		;;
	pci-p2pdma-tell-the-provider-registry-of-memory-with-pages.patch)
		with PHYSDMA_PAGES_KUNIT_TEST
		;;
	rust-uapi-the-files-of-rnvme.patch) with 'RNVME(_INJECT|_KUNIT_TEST)?' ;;
	block-keep-the-memory-of-a-bio-without-pages.patch) with BLOCK_PHYS_KUNIT_TEST ;;
	rust-block-build-and-submit-bios.patch) with PHYSDMA_BIOS PHYSDMA_BENCH ;;
	esac
}

# passes PATCH: boots what was built
passes() {
	PYTHONPATH=$ROOT/scripts python3 -B -m harness suites "$OUT" "$LOGS/$1.json"
}

targets=(prepare drivers/block/rnull/ samples/rust/)
reached=
for patch in "${patches[@]}"; do
	# As git am does: no fuzz. The tree is in no repository of its own.
	GIT_CEILING_DIRECTORIES=$DIR git -C "$LINUX" apply -p1 "$SERIES/$patch" ||
		die "patches/$patch does not apply without fuzz" 'make patch-refresh PATCH= mends its context'
	joins "$patch"
	[ "$patch" != "$from" ] || reached=1
	[ "$reached" ] || continue
	start=$SECONDS
	mapfile -t objects < <(objects "$patch")
	logged "$LOGS/$patch.log" "$patch" kmake "$OUT" -j"$JOBS" "${targets[@]}" "${objects[@]}"
	[ "${targets[0]}" = prepare ] || logged "$LOGS/$patch.suites.log" "the suites at $patch" passes "$patch"
	say "$patch: $((SECONDS - start)) s"
done

# It counts the page tables of the whole machine, and wants one with a single processor that does
# nothing else, such as kunit.py's.
own_suites() {
	cd "$LINUX"
	python3 tools/testing/kunit/kunit.py run --build_dir "$DIR/kunit" --jobs "$JOBS" \
		--kunitconfig drivers/iommu/generic_pt/.kunitconfig --make_options "LLVM=$LLVM" \
		--make_options KCFLAGS=-Wno-null-pointer-arithmetic
}
logged "$LOGS/kunit.log" 'the suite of the kernel that a patch adds a case to' own_suites
say "all patches apply and build in order, and the kernel's own suite passes"
