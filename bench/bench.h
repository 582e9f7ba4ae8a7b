/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _PHYSDMA_BENCH_H
#define _PHYSDMA_BENCH_H

#include <linux/types.h>

struct device;
struct request;

/* layer.rs: the same through kernel::physdma. */
void *bench_layer_new(struct device *dev, u16 max_segments);
void bench_layer_free(void *layer);
size_t bench_layer_map(void *layer, struct request *rq, unsigned int *segments);
void bench_layer_unmap(void *layer);

#endif
