/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _PHYSDMA_BENCH_WAYS_H
#define _PHYSDMA_BENCH_WAYS_H

#include <linux/blk-mq.h>
#include <linux/blk-mq-dma.h>
#include <linux/dma-mapping.h>
#include <linux/mempool.h>
#include <linux/pci-p2pdma.h>
#include <linux/physdma.h>

#define MAX_PAGES	256

struct piece {
	dma_addr_t addr;
	u32 len;
};

struct bench {
	struct device *dev;
	struct blk_mq_tag_set set;
	struct request_queue *q;

	/* Chunks that lie together in memory, and pages that do not. */
	struct page *chunk;
	struct page *scattered[MAX_PAGES];

	void *layer;
	/* The request's pieces, where there are no pages. */
	struct physdma_bvec list[MAX_PAGES];
	unsigned int nr;

	/* What nvme keeps in its struct nvme_iod. */
	struct dma_iova_state state;
	mempool_t *pool;
	struct piece *pieces;
	unsigned int nr_pieces;
	enum pci_p2pdma_map_type map;
	dma_addr_t single;
	size_t total;

	/* The requests are for memory of another device. */
	bool paged;
	/* What the layer has just been seen to need. */
	u64 mapped;
};

/* A way to map a request; returns the bytes that the device would be told of. */
struct way {
	const char *name;
	size_t (*map)(struct bench *b, struct request *rq, unsigned int *segs);
	void (*unmap)(struct bench *b, struct request *rq);
};

/* physdma, and what nvme does. */
extern const struct way layer, nvme;

struct shape {
	const char *name;
	unsigned int pages;
	bool scattered;
	unsigned int offset;	/* of the first byte in its page */
	unsigned int bytes;
	bool p2p;		/* also with memory of another device */
};

/* A way, and a request to map. */
struct trial {
	const struct way *way;
	struct bench *b;
	struct request *rq;
	unsigned int segs;
	size_t bytes;
};

static __always_inline void map_unmap(void *data)
{
	struct trial *t = data;

	t->bytes = t->way->map(t->b, t->rq, &t->segs);
	t->way->unmap(t->b, t->rq);
}

struct request *make_request(struct bench *b, const struct shape *s);
void free_request(struct request *rq);
bool maps(struct trial *t);

/* cpus.c */
int run_cpus(struct bench *b);

#endif
