# SPDX-License-Identifier: GPL-2.0
#
# What a person types. `make help` lists it. The kernel's build of this
# directory is in Kbuild.
#
# Can be named on the command line or in the environment:
#   KDIR=    a pristine tree of Linux 7.3, instead of Debian's
#   LLVM=    as for the kernel: -22 (the default), 1, or a directory ending in /
#   RUSTC=   rustc of 1.85 or later, built on the same LLVM
#   BINDGEN= bindgen of 0.71.1 or later
#   QEMU=    qemu-system-x86_64 of 9 or later
#   DRIVER=  nvme: `make run` with the C driver, to compare

NAMED := KDIR LLVM RUSTC BINDGEN QEMU ONLY DRIVER FROM
$(foreach name,$(NAMED),$(if $($(name)),$(eval export $(name))))

.NOTPARALLEL:
.SUFFIXES:

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | expand -t 18
	@echo; sed -n '/^# Can be named/,/^$$/s/^# *//p' Makefile

run: kernel ## boots a machine and shows verified I/O on an ext4 on rnvme
	@PYTHONPATH=scripts python3 -B -m harness run

# What runs on the host needs no kernel.
test: $(if $(or $(if $(ONLY),,all),$(filter-out host%,$(ONLY))),kernel,packages) ## all tests; ONLY=kunit/... runs a part; report in build/reports/test.json
	@PYTHONPATH=scripts python3 -B -m harness test

test-debug: kernel-debug ## all tests on a kernel with KASAN, UBSAN, lockdep and the like
	@PYTHONPATH=scripts python3 -B -m harness test --debug

test-kind: kernel-kind ## tests and P2P scenarios with CONFIG_PHYSDMA_BVEC_KIND, a PhysBvec of 16 bytes
	@PYTHONPATH=scripts python3 -B -m harness test --kind

test-configs: kernel ## tests without each of PCI_P2PDMA, IOMMU and BLOCK, in build/kernel-without
	@PYTHONPATH=scripts python3 -B -m harness configs

soak: kernel ## memory goes and drivers go under I/O, a thousand times; adds a line to tests/soaks.md
	@PYTHONPATH=scripts python3 -B -m harness soak

soak-debug: kernel-debug ## the same on the kernel that test-debug boots
	@PYTHONPATH=scripts python3 -B -m harness soak --debug

fuzz: packages-fuzz ## 10 million inputs for the pure logic, with AddressSanitizer
	@scripts/fuzz.sh

bench: packages-bench kernel kernel-kind ## everything measured beside the C stack; build/reports/bench.html has plots
	@PYTHONPATH=scripts python3 -B bench/run.py

bench-quick: kernel ## instructions of map, unmap and look-up, beside those of the C stack
	@PYTHONPATH=scripts python3 -B bench/run.py quick

lint: packages-lint kernel ## rustfmt, clippy, checkpatch, shellcheck
	@scripts/lint.sh

doc: linux ## the reference of the kernel crate, as web pages
	@scripts/kernel.sh kernel doc

module: kernel ## M=...: a module of yours, in the directory M, against build/kernel
	@scripts/module.sh '$(M)'

shell: kernel ## a shell in a machine with two SSDs, edu and ivshmem behind a strict IOMMU
	@PYTHONPATH=scripts python3 -B -m harness shell

kernel: linux tools ## configures and builds the kernel, and what runs on it: nothing else
	@scripts/kernel.sh kernel

kernel-debug: linux tools ## the same for the kernel that test-debug boots
	@scripts/kernel.sh kernel-debug

kernel-kind: kernel ## the same for the kernel that test-kind boots
	@scripts/kernel.sh kernel-kind

linux: packages ## the kernel's source with patches/ and this project in it
	@scripts/graft.sh

tools: packages ## p2pcp, which copies from SSD to SSD, and what tests run, in build/tools
	@$(MAKE) --no-print-directory -C tools/p2pcp OUTPUT=$(CURDIR)/build/tools

packages: ## installs the tools that are missing (Debian 12), or lists them
	@scripts/packages.sh

packages-lint:
	@scripts/packages.sh lint

packages-fuzz:
	@scripts/packages.sh fuzz

packages-bench:
	@scripts/packages.sh bench

patch-new: ## NAME=...: begins a kernel patch
	@scripts/patch.sh new '$(NAME)'

patch-add: ## FILE=... [PATCH=...]: a file of the kernel that the patch will change
	@scripts/patch.sh add '$(FILE)' $(PATCH)

patch-refresh: ## [PATCH=...]: takes edits in build/linux into the patch
	@scripts/patch.sh refresh $(PATCH)

test-patches: packages tools ## that each kernel patch applies, builds and passes in order; FROM=... goes on there; takes hours
	@nice scripts/test-patches.sh

clean: ## removes build/; the cache with the kernel's source stays
	rm -rf build

.PHONY: help run test test-debug test-kind test-configs soak soak-debug fuzz bench bench-quick lint
.PHONY: doc module shell tools kernel kernel-debug kernel-kind linux
.PHONY: packages packages-lint packages-fuzz packages-bench patch-new patch-add patch-refresh test-patches clean
