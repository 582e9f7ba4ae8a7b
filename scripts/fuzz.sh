#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Fuzzes the pure logic, tests/host/src/fuzz.rs, with libFuzzer and
# AddressSanitizer: RUNS inputs (10 million), guided by coverage. The kernel's
# own compilers do it: rustc makes an archive, clang links it with its runtime.
# The corpus is kept in build/fuzz.
set -euo pipefail
. "$(dirname "$0")/common.sh"

FUZZ=$BUILD/fuzz
RUNS=${RUNS:-10000000}
SOURCE=$ROOT/tests/host/src/fuzz.rs

mkdir -p "$FUZZ/corpus"

build() {
	# -Z and -C passes are for those who know their compiler, as the kernel does.
	RUSTC_BOOTSTRAP=1 "$RUSTC" --edition=2021 --crate-type=staticlib -C opt-level=2 -g \
		-C debug-assertions -C overflow-checks -C codegen-units=1 \
		-Z sanitizer=address -C passes=sancov-module \
		-C llvm-args=-sanitizer-coverage-level=4 \
		-C llvm-args=-sanitizer-coverage-inline-8bit-counters \
		-C llvm-args=-sanitizer-coverage-pc-table \
		-C llvm-args=-sanitizer-coverage-trace-compares \
		-o "$FUZZ/libfuzz.a" "$SOURCE"
	"$(llvm_tool clang)" -fsanitize=fuzzer,address -o "$FUZZ/fuzz" "$FUZZ/libfuzz.a"
}

logged "$REPORTS/fuzz-build.log" 'building the fuzzer' build
logged "$REPORTS/fuzz.log" "fuzzing with $RUNS inputs" \
	"$FUZZ/fuzz" -runs="$RUNS" -max_len=512 -rss_limit_mb=1024 -timeout=10 \
	-print_final_stats=1 -artifact_prefix="$FUZZ/" "$FUZZ/corpus"
say "$(sed -n 's/^stat::number_of_executed_units: */inputs that ran: /p' "$REPORTS/fuzz.log")," \
	"$(sed -n 's/.*DONE *\(cov: [0-9]*\).*/\1 places/p' "$REPORTS/fuzz.log")"
