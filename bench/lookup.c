// SPDX-License-Identifier: GPL-2.0
/*
 * What it costs to find out whose memory a physical address is: with no
 * provider, and among many; beside a maple tree with the same ranges that C
 * looks into.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/maple_tree.h>
#include <linux/mm.h>

#include "bench.h"

#define RANGES_BAR	2
/* A range, and a gap of the same size. */
#define RANGE_BYTES	256
#define STRIDE		(2 * RANGE_BYTES)

#define LOOKUPS		8192
#define ROUNDS		4

static struct maple_tree tree = MTREE_INIT(tree, MT_FLAGS_USE_RCU);

/* Where to look: a number of places in a row, in no order. */
struct places {
	phys_addr_t base;
	u32 nr;
	u32 found;
};

static void look_up(void *data)
{
	struct places *at = data;

	at->found = bench_look_up(at->base, STRIDE, at->nr, LOOKUPS);
}

/* The loop without the look-up. */
static void look_at(void *data)
{
	struct places *at = data;

	at->found = bench_look_at(at->base, STRIDE, at->nr, LOOKUPS);
}

static u32 place(const struct places *at, u32 i)
{
	return i * 0x9e3779b1u & (at->nr - 1);
}

static void c_look_up(void *data)
{
	struct places *at = data;
	u32 i, found = 0;

	for (i = 0; i < LOOKUPS; i++) {
		phys_addr_t phys = at->base + (phys_addr_t)place(at, i) * STRIDE;

		if (mtree_load(&tree, phys))
			found++;
	}
	at->found = found;
}

static void c_look_at(void *data)
{
	struct places *at = data;
	u32 i, found = 0;

	for (i = 0; i < LOOKUPS; i++) {
		phys_addr_t phys = at->base + (phys_addr_t)place(at, i) * STRIDE;

		OPTIMIZER_HIDE_VAR(phys);
		if (phys)
			found++;
	}
	at->found = found;
}

/* Hundredths of an instruction for one of the look-ups. */
static u64 per_lookup(void (*f)(void *), void (*empty)(void *), struct places *at)
{
	u64 with = measure(ROUNDS, f, at).median, without = measure(ROUNDS, empty, at).median;

	return with < without ? 0 : (with - without) * 100 / LOOKUPS;
}

static int row(const char *name, struct places at, u32 nr, u32 wanted, bool c)
{
	u64 ours, theirs = 0;

	ours = per_lookup(look_up, look_at, &at);
	look_up(&at);
	if (at.found != wanted) {
		pr_err("%s: %u of %u look-ups found a provider\n", name, at.found, LOOKUPS);
		return -EINVAL;
	}
	if (c) {
		theirs = per_lookup(c_look_up, c_look_at, &at);
		c_look_up(&at);
		if (at.found != wanted)
			return -EINVAL;
	}
	pr_info("lookup|%s|%u|%u|%llu|%llu\n", name, nr, mt_height(&tree), ours, theirs);
	return 0;
}

int bench_lookups(struct pci_dev *pdev)
{
	phys_addr_t base = pci_resource_start(pdev, RANGES_BAR);
	u32 max = pci_resource_len(pdev, RANGES_BAR) / STRIDE;
	struct places ram = { .nr = 1024 };
	struct page *page;
	void *ranges;
	u32 nr, have = 0;
	int ret;

	page = alloc_pages(GFP_KERNEL, get_order(ram.nr * STRIDE));
	if (!page)
		return -ENOMEM;
	ram.base = page_to_phys(page);
	ranges = bench_ranges_new(pdev);
	if (!ranges) {
		ret = -ENOMEM;
		goto free_pages;
	}

	ret = row("RAM", ram, 0, 0, false);
	for (nr = 1; nr <= 65536 && nr <= max && !ret; nr *= nr == 1 ? 16 : 64) {
		struct places at = { .base = base, .nr = nr };

		for (; have < nr && !ret; have++) {
			unsigned long first = base + have * STRIDE;

			ret = bench_ranges_add(ranges, RANGES_BAR, have * STRIDE, RANGE_BYTES);
			if (!ret)
				ret = mtree_insert_range(&tree, first, first + RANGE_BYTES - 1,
							 xa_mk_value(have + 1), GFP_KERNEL);
			if (have % 1024 == 0)
				cond_resched();
		}
		if (!ret)
			ret = row("RAM", ram, nr, 0, false);
		if (!ret)
			ret = row("provider", at, nr, LOOKUPS, true);
	}
	pr_info("%s\n", ret ? "failed" : "done");

	bench_ranges_free(ranges);
	mtree_destroy(&tree);
free_pages:
	__free_pages(page, get_order(ram.nr * STRIDE));
	return ret;
}
