#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Builds a module outside of this tree against build/kernel, with the tools
# that built it.
#
# Usage: module.sh DIR    DIR has a Makefile or Kbuild with obj-m
set -euo pipefail
. "$(dirname "$0")/common.sh"

DIR=${1:-}
[ -n "$DIR" ] || die 'which module?' 'make module M=~/my-driver'
[ -e "$DIR/Makefile" ] || [ -e "$DIR/Kbuild" ] ||
	die "$DIR has no Makefile" "write one with the line: obj-m := my_driver.o"
DIR=$(realpath "$DIR")
lock "$BUILD/lock"
kmake "$BUILD/kernel" M="$DIR" modules
say "the modules:" "$(cd "$DIR" && find "$PWD" -name '*.ko' | paste -sd ' ')"
