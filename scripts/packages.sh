#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Sees that every tool is there that building and testing needs. On Debian 12
# installs what is missing; elsewhere lists it and stops.
#
# Usage: packages.sh [lint|fuzz]    with one of them, what that make target
# needs is included
set -euo pipefail
. "$(dirname "$0")/common.sh"
. "$(dirname "$0")/apt-view.sh"

missing=()	# lines "PACKAGE<tab>WHY"

# want PACKAGE WHY COMMAND...: the package is needed when the command fails
want() {
	local package=$1 why=$2
	shift 2
	"$@" > /dev/null 2>&1 || missing+=("$package"$'\t'"$why")
}

rustc_llvm() { "$RUSTC" -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p'; }
clang_major() { "$(llvm_tool clang)" -dumpversion | cut -d . -f 1; }

rustc_ok() { version_at_least "$("$RUSTC" --version | cut -d ' ' -f 2)" 1.85.0; }
rust_src_ok() {
	[ -e "$("$RUSTC" --print sysroot)/lib/rustlib/src/rust/library/core/src/lib.rs" ]
}
libclang_ok() { compgen -G "$("$(llvm_tool llvm-config)" --libdir)/libclang*.so*"; }
qemu_ok() {
	version_at_least "$("$QEMU" --version | sed -n 's/.*version \([0-9.]*\).*/\1/p')" 9.0
}
busybox_ok() { has busybox && ! ldd "$(command -v busybox)"; }

fuzzer_ok() {
	echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' |
		"$(llvm_tool clang)" -x c -fsanitize=fuzzer,address -o /dev/null -
}

look() {
	missing=()
	want gcc 'links host programs' has cc
	want libc6-dev "the C library's headers, for host programs" test -e /usr/include/stdio.h
	want make 'builds the kernel' has make
	want perl "the kernel's own scripts" has perl
	want python3 'starts the machines and runs the tests' has python3
	want curl "fetches the kernel's source" has curl
	want ca-certificates 'secure downloads' test -e /etc/ssl/certs
	want xz-utils "unpacks the kernel's source" has xz
	want rsync "copies the kernel's source" has rsync
	want quilt 'applies the kernel patches' has quilt
	want flex "the kernel's configuration" has flex
	want bison "the kernel's configuration" has bison
	want bc "the kernel's build" has bc
	want cpio "the machines' first files" has cpio
	want kmod "the modules' dependencies" has modinfo
	want libelf-dev 'objtool' test -e /usr/include/gelf.h
	want libssl-dev "the kernel's build" test -e /usr/include/openssl/ssl.h
	want clang-22 "compiles the kernel's C" has "$(llvm_tool clang)"
	want lld-22 'links the kernel' has "$(llvm_tool ld.lld)"
	want llvm-22 'inlines C helpers into Rust' has "$(llvm_tool llvm-link)"
	want libclang-22-dev 'bindgen reads C headers with it' libclang_ok
	want rustc-web "compiles the kernel's Rust (1.85 or later)" rustc_ok
	want rust-web-src "Rust's core library, built for the kernel" rust_src_ok
	want rustfmt-web 'formats generated and our own Rust' test -x "$(beside_rustc rustfmt)"
	want cargo-web 'builds bindgen, runs the host tests' has cargo
	want qemu-system-x86 'the machines (QEMU 9 or later)' qemu_ok
	want busybox-static 'userland of the machines' busybox_ok
	want fio 'disk traffic in the machines' has fio
	want nvme-cli 'NVMe commands in the machines' has nvme
	want pciutils 'PCI configuration in the machines' has setpci
	want procps 'programs in the machines' has pgrep
	want psmisc 'programs in the machines' has killall
	want dmsetup 'stacked disks in the machines' has dmsetup
	want e2fsprogs 'file systems, and reading them on the host' has debugfs
	if [ "${1:-}" = lint ]; then
		want rust-web-clippy 'lints Rust' test -x "$(beside_rustc clippy-driver)"
		want git 'knows which files are of the project' has git
		want shellcheck 'lints shell scripts' has shellcheck
	fi
	if [ "${1:-}" = bench ]; then
		want gnuplot-nox 'plots of what was measured' has gnuplot
	fi
	if [ "${1:-}" = fuzz ]; then
		want libclang-rt-22-dev 'libFuzzer and AddressSanitizer' fuzzer_ok
	fi
}

as_root() {
	if [ "$EUID" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# install PACKAGE...: from the suites of Debian 12, QEMU from its backports
install_packages() {
	local main security backports=() rest=() package
	main=$(mirror_of bookworm oldstable stable) ||
		die 'apt names no mirror for Debian 12 (bookworm)' \
			'see /etc/apt/sources.list and /etc/apt/sources.list.d'
	security=$(mirror_of bookworm-security oldstable-security stable-security) ||
		security=${main%/*}/debian-security
	apt_view packages <<-END
		$main bookworm
		$main bookworm-updates
		$main bookworm-backports
		$security bookworm-security
	END
	if [ "$EUID" -ne 0 ] && ! has sudo; then
		die 'installing packages needs root, and there is no sudo' \
			"as root: apt-get install $*"
	fi
	for package; do
		case $package in
		qemu-*) backports+=("$package") ;;
		*) rest+=("$package") ;;
		esac
	done
	local get=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 "${APT_VIEW[@]}")
	as_root "${get[@]}" update || say 'warning: not all lists could be read (see above)'
	[ ${#rest[@]} -eq 0 ] ||
		as_root "${get[@]}" install --no-install-recommends "${rest[@]}"
	[ ${#backports[@]} -eq 0 ] ||
		as_root "${get[@]}" install --no-install-recommends -t bookworm-backports "${backports[@]}"
}

lock "$CACHE/lock"
for name in "${NAMED_TOOLS[@]}"; do
	has "${!name}" || die "$name=${!name}: there is no such program" \
		"name another, or leave $name= out for the one of Debian 12"
done
case $LLVM in
*/) has "$(llvm_tool clang)" || die "LLVM=$LLVM: there is no clang in it" \
	'name a directory with LLVM'"'"'s programs, a version as in LLVM=-22, or LLVM=1' ;;
esac
look "$@"
if [ ${#missing[@]} -gt 0 ]; then
	say 'these are missing (Debian package, what for):'
	printf '%s\n' "${missing[@]}" | expand -t 24 | sed 's/^/    /'
	# shellcheck disable=SC1091
	[ "$(. /etc/os-release && echo "$ID $VERSION_ID")" = 'debian 12' ] ||
		die 'only on Debian 12 can they be installed for you' \
			'install what they stand for and run the same command again; tools that have another' \
			'name or place can be named: make ... LLVM=-20 RUSTC=/path BINDGEN=/path QEMU=/path'
	say 'installing them; the machine'"'"'s apt configuration stays as it is'
	mapfile -t names < <(printf '%s\n' "${missing[@]}" | cut -f 1)
	install_packages "${names[@]}" || die 'the installation failed' \
		'if the network failed, run the same command again'
	hash -r
	look "$@"
	[ ${#missing[@]} -eq 0 ] || die "still missing: $(printf '%s\n' "${missing[@]}" | cut -f 1 | paste -sd ' ')" \
		'another version of it may stand before the installed one: see RUSTC=, LLVM=, QEMU='
fi

[ "$(rustc_llvm)" = "$(clang_major)" ] ||
	die "$RUSTC is built on LLVM $(rustc_llvm), but $(llvm_tool clang) is LLVM $(clang_major)" \
		'C helpers are inlined into Rust, which needs the same LLVM in both:' \
		'name a pair that fits, with RUSTC= and LLVM='

if ! bindgen_ok "$BINDGEN"; then
	[ "$BINDGEN" = "$CACHE/tools/bin/bindgen" ] ||
		die "$BINDGEN is not bindgen $BINDGEN_WANTED or later" 'name another with BINDGEN='
	say "building bindgen (the kernel's bindings need $BINDGEN_WANTED or later) in $CACHE/tools"
	logged "$REPORTS/bindgen.log" 'bindgen' \
		env RUSTC="$RUSTC" cargo install --locked --root "$CACHE/tools" bindgen-cli
fi
