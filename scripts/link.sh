# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# This project in the kernel tree $LINUX, as links. To be sourced after
# common.sh.

# link PATH [AS]: PATH of this project appears as AS in the kernel tree
link() {
	local to=$LINUX/${2:-$1}
	if [ -e "$ROOT/$1" ]; then
		[ "$(realpath -q "$to")" = "$ROOT/$1" ] && return
		mkdir -p "$(dirname "$to")"
		ln -srfn "$ROOT/$1" "$to"
	elif [ -L "$to" ]; then
		rm "$to"
	fi
}

link_project() {
	local part
	link rust/kernel/physdma.rs
	link rust/kernel/physdma
	link rust/helpers/physdma.c
	link include/linux/physdma.h
	link include/trace/events/physdma.h
	link include/uapi/linux/rnvme.h
	for part in Kbuild Kconfig drivers tests samples bench; do
		link $part physdma/$part
	done
}
