// SPDX-License-Identifier: GPL-2.0
/*
 * What it costs to map and unmap a block request: through kernel::physdma, and
 * through what the C driver nvme calls. Both get the same request object, on
 * the same device, in turn.
 *
 * Run where time is instructions (QEMU's -icount shift=0), the numbers are
 * instructions per call, and repeat.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/blk-mq.h>
#include <linux/blk-mq-dma.h>
#include <linux/dma-mapping.h>
#include <linux/mempool.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/sort.h>

#include "bench.h"

#define MAX_PAGES	256
#define ROUNDS		400
#define REPEATS		5

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

	/* What nvme keeps in its struct nvme_iod. */
	struct dma_iova_state state;
	mempool_t *pool;
	struct piece *pieces;
	unsigned int nr_pieces;
	dma_addr_t single;
	size_t total;
};

/* A way to map a request; returns the bytes that the device would be told of. */
struct way {
	const char *name;
	size_t (*map)(struct bench *b, struct request *rq, unsigned int *segs);
	void (*unmap)(struct bench *b, struct request *rq);
};

static size_t layer_map(struct bench *b, struct request *rq,
			unsigned int *segs)
{
	return bench_layer_map(b->layer, rq, segs);
}

static void layer_unmap(struct bench *b, struct request *rq)
{
	bench_layer_unmap(b->layer);
}

static bool nvme_save(struct bench *b, struct blk_dma_iter *iter)
{
	if (dma_use_iova(&b->state) || !dma_need_unmap(b->dev))
		return true;
	if (!b->nr_pieces) {
		b->pieces = mempool_alloc(b->pool, GFP_ATOMIC);
		if (!b->pieces)
			return false;
	}
	b->pieces[b->nr_pieces].addr = iter->addr;
	b->pieces[b->nr_pieces++].len = iter->len;
	return true;
}

/* As nvme_map_data() and nvme_pci_setup_data_prp(), less the PRPs. */
static size_t nvme_map(struct bench *b, struct request *rq, unsigned int *segs)
{
	struct blk_dma_iter iter;

	b->total = 0;
	b->nr_pieces = 0;
	*segs = 0;

	if (blk_rq_nr_phys_segments(rq) == 1) {
		struct bio_vec bv = req_bvec(rq);

		if (!is_pci_p2pdma_page(bv.bv_page)) {
			b->single = dma_map_bvec(b->dev, &bv, rq_dma_dir(rq),
						 0);
			if (dma_mapping_error(b->dev, b->single))
				return 0;
			*segs = 1;
			return b->total = bv.bv_len;
		}
	}

	b->single = DMA_MAPPING_ERROR;
	if (!blk_rq_dma_map_iter_start(rq, b->dev, &b->state, &iter))
		return 0;
	do {
		if (!nvme_save(b, &iter))
			return 0;
		b->total += iter.len;
		(*segs)++;
	} while (blk_rq_dma_map_iter_next(rq, b->dev, &iter));
	return b->total;
}

/* As nvme_unmap_data() and nvme_free_prps(). */
static void nvme_unmap(struct bench *b, struct request *rq)
{
	unsigned int i;

	if (b->single != DMA_MAPPING_ERROR) {
		dma_unmap_page(b->dev, b->single, b->total, rq_dma_dir(rq));
		return;
	}
	if (blk_rq_dma_unmap(rq, b->dev, &b->state, b->total,
			     PCI_P2PDMA_MAP_NONE))
		return;
	for (i = 0; i < b->nr_pieces; i++)
		dma_unmap_phys(b->dev, b->pieces[i].addr, b->pieces[i].len,
			       rq_dma_dir(rq), 0);
	mempool_free(b->pieces, b->pool);
}

static size_t nothing_map(struct bench *b, struct request *rq,
			  unsigned int *segs)
{
	*segs = 0;
	return 0;
}

static void nothing_unmap(struct bench *b, struct request *rq)
{
}

static const struct way layer = { "physdma", layer_map, layer_unmap };
static const struct way nvme = { "blk_rq_dma_map_iter", nvme_map, nvme_unmap };
/* A peer that does nothing must be found out. */
static const struct way nothing = { "nothing", nothing_map, nothing_unmap };

struct shape {
	const char *name;
	unsigned int pages;
	bool scattered;
	unsigned int offset;	/* of the first byte in its page */
	unsigned int bytes;
};

static const struct shape shapes[] = {
	{ "4K", 1, false, 0, SZ_4K },
	{ "16K contiguous", 4, false, 0, SZ_16K },
	{ "128K contiguous", 32, false, 0, SZ_128K },
	{ "128K in 32 pages", 32, true, 0, SZ_128K },
	{ "1M in 256 pages", 256, true, 0, SZ_1M },
	{ "120K in 31 pages, unaligned ends", 31, true, 0x800, 30 * SZ_4K },
};

static struct request *make_request(struct bench *b, const struct shape *s)
{
	unsigned int left = s->bytes, offset = s->offset, i;
	struct request *rq;
	struct bio *bio;

	rq = blk_mq_alloc_request(b->q, REQ_OP_DRV_IN, 0);
	if (IS_ERR(rq))
		return rq;

	bio = bio_kmalloc(s->pages, GFP_KERNEL);
	if (!bio)
		goto free_rq;
	bio_init_inline(bio, NULL, s->pages, REQ_OP_DRV_IN);
	for (i = 0; i < s->pages; i++) {
		struct page *page = s->scattered ? b->scattered[i] :
						   b->chunk + i;
		unsigned int len = min(left, (unsigned int)PAGE_SIZE - offset);

		if (bio_add_page(bio, page, len, offset) != len)
			goto free_bio;
		left -= len;
		offset = 0;
	}
	if (left || blk_rq_append_bio(rq, bio))
		goto free_bio;
	return rq;

free_bio:
	bio_uninit(bio);
	kfree(bio);
free_rq:
	blk_mq_free_request(rq);
	return ERR_PTR(-ENOMEM);
}

static void free_request(struct request *rq)
{
	struct bio *bio = rq->bio;

	rq->bio = NULL;
	bio_uninit(bio);
	kfree(bio);
	blk_mq_free_request(rq);
}

static int compare(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

/*
 * Nanoseconds for one map and one unmap: the median of REPEATS averages, and
 * how far they lie apart.
 */
static int measure(struct bench *b, const struct way *way, struct request *rq,
		   u64 *median, u64 *spread, unsigned int *segs)
{
	u64 times[REPEATS];
	int i, j;

	for (i = 0; i < REPEATS; i++) {
		u64 start;

		/* Warm up: page tables, the allocator's caches. */
		for (j = 0; j < ROUNDS / 10; j++) {
			size_t bytes = way->map(b, rq, segs);

			if (bytes != blk_rq_payload_bytes(rq))
				return -EIO;
			way->unmap(b, rq);
		}

		start = ktime_get_ns();
		for (j = 0; j < ROUNDS; j++) {
			way->map(b, rq, segs);
			way->unmap(b, rq);
		}
		times[i] = div_u64(ktime_get_ns() - start, ROUNDS);
		cond_resched();
	}
	sort(times, REPEATS, sizeof(times[0]), compare, NULL);
	*median = times[REPEATS / 2];
	*spread = times[REPEATS - 1] - times[0];
	return 0;
}

static int run_shape(struct bench *b, const struct shape *s)
{
	u64 ours, ours_spread, theirs, theirs_spread;
	unsigned int our_segs, their_segs;
	struct request *rq;
	int ret;

	rq = make_request(b, s);
	if (IS_ERR(rq))
		return PTR_ERR(rq);

	ret = measure(b, &nothing, rq, &theirs, &theirs_spread, &their_segs);
	if (ret != -EIO) {
		pr_err("a peer that does nothing passes as one that works\n");
		ret = -EINVAL;
		goto out;
	}
	ret = measure(b, &nvme, rq, &theirs, &theirs_spread, &their_segs);
	if (ret) {
		pr_err("%s: %s did not map the request\n", s->name, nvme.name);
		goto out;
	}
	ret = measure(b, &layer, rq, &ours, &ours_spread, &our_segs);
	if (ret) {
		pr_err("%s: %s did not map the request\n", s->name,
		       layer.name);
		goto out;
	}
	/* The one who gives the device more segments has an easier time. */
	if (our_segs != their_segs) {
		pr_err("%s: %u segments, but %u by %s\n", s->name, our_segs,
		       their_segs, nvme.name);
		ret = -EINVAL;
		goto out;
	}
	pr_info("row|%s|%llu|%llu|%u|%s|%llu|%llu|%u\n", s->name, ours,
		ours_spread, our_segs, nvme.name, theirs, theirs_spread,
		their_segs);
out:
	free_request(rq);
	return ret;
}

static blk_status_t never_queued(struct blk_mq_hw_ctx *hctx,
				 const struct blk_mq_queue_data *bd)
{
	return BLK_STS_IOERR;
}

static const struct blk_mq_ops ops = {
	.queue_rq	= never_queued,
};

/* Pages of which no two in a row are neighbours. */
static int scatter(struct bench *b)
{
	LIST_HEAD(unfit);
	struct page *page, *next;
	int i = 0, ret = 0;

	while (i < MAX_PAGES) {
		page = alloc_page(GFP_KERNEL);
		if (!page) {
			ret = -ENOMEM;
			break;
		}
		if (i && page_to_pfn(page) == page_to_pfn(b->scattered[i - 1]) + 1)
			list_add(&page->lru, &unfit);
		else
			b->scattered[i++] = page;
	}
	list_for_each_entry_safe(page, next, &unfit, lru) {
		list_del(&page->lru);
		__free_page(page);
	}
	return ret;
}

static int run(struct bench *b)
{
	struct queue_limits lim = {
		.max_hw_sectors		= SZ_4M >> SECTOR_SHIFT,
		.max_segments		= MAX_PAGES + 1,
		.max_segment_size	= UINT_MAX,
		.virt_boundary_mask	= SZ_4K - 1,
		.dma_alignment		= 3,
	};
	int ret, i;

	b->chunk = alloc_pages(GFP_KERNEL, get_order(SZ_128K));
	b->pool = mempool_create_kmalloc_pool(1, sizeof(struct piece) *
					      (MAX_PAGES + 1));
	if (!b->chunk || !b->pool) {
		ret = -ENOMEM;
		goto free_memory;
	}
	ret = scatter(b);
	if (ret)
		goto free_memory;

	b->set = (struct blk_mq_tag_set) {
		.ops		= &ops,
		.nr_hw_queues	= 1,
		.queue_depth	= 2,
		.numa_node	= NUMA_NO_NODE,
	};
	ret = blk_mq_alloc_tag_set(&b->set);
	if (ret)
		goto free_memory;
	b->q = blk_mq_alloc_queue(&b->set, &lim, NULL);
	if (IS_ERR(b->q)) {
		ret = PTR_ERR(b->q);
		goto free_set;
	}
	b->layer = bench_layer_new(b->dev, MAX_PAGES + 1);
	if (!b->layer) {
		ret = -ENOMEM;
		goto free_queue;
	}

	for (i = 0; i < ARRAY_SIZE(shapes) && !ret; i++)
		ret = run_shape(b, &shapes[i]);

	bench_layer_free(b->layer);
free_queue:
	blk_mq_destroy_queue(b->q);
	blk_put_queue(b->q);
free_set:
	blk_mq_free_tag_set(&b->set);
free_memory:
	for (i = 0; i < MAX_PAGES; i++)
		if (b->scattered[i])
			__free_page(b->scattered[i]);
	mempool_destroy(b->pool);
	if (b->chunk)
		__free_pages(b->chunk, get_order(SZ_128K));
	return ret;
}

static int bench_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct bench *b;
	int ret;

	ret = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	if (ret)
		return ret;
	b = kzalloc_obj(*b);
	if (!b)
		return -ENOMEM;
	b->dev = &pdev->dev;
	ret = run(b);
	if (ret)
		pr_err("failed: %d\n", ret);
	else
		pr_info("done\n");
	kfree(b);
	return -ENODEV;
}

static const struct pci_device_id bench_ids[] = {
	{ PCI_DEVICE(PCI_VENDOR_ID_REDHAT, 0x0005) },
	{ }
};

static struct pci_driver bench_driver = {
	.name		= KBUILD_MODNAME,
	.id_table	= bench_ids,
	.probe		= bench_probe,
};
module_pci_driver(bench_driver);

MODULE_DESCRIPTION("Benchmark of physdma beside the C stack");
MODULE_LICENSE("GPL");
