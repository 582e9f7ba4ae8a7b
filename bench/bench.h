/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _PHYSDMA_BENCH_H
#define _PHYSDMA_BENCH_H

#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/pci.h>
#include <linux/physdma.h>
#include <linux/sched.h>
#include <linux/sort.h>
#include <linux/types.h>

struct request;

/* QEMU's ivshmem: a BAR of memory. */
#define IVSHMEM_ID	0x1110
#define IVSHMEM_BAR	2

#define REPEATS		5

/*
 * Nanoseconds of a call: the median of REPEATS averages, and how far they lie
 * apart. Where time is instructions, those.
 */
struct cost {
	u64 median, spread;
};

static int compare(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

/* What @f costs on an average of @rounds calls. */
static __always_inline struct cost measure(unsigned int rounds, void (*f)(void *data), void *data)
{
	u64 times[REPEATS];
	unsigned int i, j;

	for (i = 0; i < REPEATS; i++) {
		u64 start;

		/* Warm up: page tables, the allocator's caches. */
		for (j = 0; j <= rounds / 10; j++)
			f(data);

		start = ktime_get_ns();
		for (j = 0; j < rounds; j++)
			f(data);
		times[i] = div_u64(ktime_get_ns() - start, rounds);
		cond_resched();
	}
	sort(times, REPEATS, sizeof(times[0]), compare, NULL);
	return (struct cost){ times[REPEATS / 2], times[REPEATS - 1] - times[0] };
}

/* lookup.c */
int bench_lookups(struct pci_dev *pdev);

/* layer.rs: the same through kernel::physdma. */
void *bench_layer_new(struct device *dev, u16 max_segments);
void *bench_layer_twin(void *layer);
void bench_layer_free(void *layer);
size_t bench_layer_map(void *layer, struct request *rq, unsigned int *segments);
size_t bench_layer_map_list(void *layer, const struct physdma_bvec *list,
			    unsigned int nr, unsigned int *segments);
void bench_layer_unmap(void *layer);
size_t bench_layer_state(void);

void *bench_buffer_new(void *layer, phys_addr_t phys, unsigned int pages);
void bench_buffer_free(void *buffer);
u64 bench_buffer_use(void *buffer, u32 len, unsigned int times);
u64 bench_buffer_idle(void *buffer, u32 len, unsigned int times);

void *bench_ranges_new(struct pci_dev *pdev);
int bench_ranges_add(void *ranges, int bar, u64 start, u64 len);
void bench_ranges_free(void *ranges);
u32 bench_look_up(phys_addr_t base, u32 stride, u32 nr, u32 times);
u32 bench_look_at(phys_addr_t base, u32 stride, u32 nr, u32 times);

#endif
