// SPDX-License-Identifier: GPL-2.0
/*
 * What it costs to map and unmap a block request: through kernel::physdma, and
 * through what the C driver nvme calls. Both get the same request object, on
 * the same device, in turn.
 *
 * If there is an ivshmem with pages (physdma_pages), the requests are for its
 * memory; if there is one without (physdma_ivshmem), the layer maps the same
 * pieces of that, too. The client is QEMU's pci-testdev, and then the ivshmem
 * itself. Otherwise they are for RAM. With lookups=1 it is measured what the
 * look-up of an address costs; with times= nothing, for those who count what the
 * IOMMU is asked to do meanwhile. With growth=1 it is measured how the cost grows
 * with the pieces of a request; on more than one processor, how often two of them
 * can do it at once.
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
#include <linux/moduleparam.h>
#include <linux/pci.h>
#include <linux/pci-p2pdma.h>

#include "bench.h"
#include "ways.h"

#define ROUNDS		400
#define USES		64
#define P2P_BYTES	SZ_512K

static bool lookups;
module_param(lookups, bool, 0444);
MODULE_PARM_DESC(lookups, "Measure look-ups of addresses, among many ranges");

static bool sizes;
module_param(sizes, bool, 0444);
MODULE_PARM_DESC(sizes, "Say what takes how many bytes, also of the disks of rnvme and nvme");

static unsigned int times;
module_param(times, uint, 0444);
MODULE_PARM_DESC(times, "Measure nothing, but map and unmap a request of RAM so often");

static unsigned int shape;
module_param(shape, uint, 0444);
MODULE_PARM_DESC(shape, "The number of that request's shape");

static bool growth;
module_param(growth, bool, 0444);
MODULE_PARM_DESC(growth, "Measure requests of 1 to 256 pieces, or on two processors at once");

static bool peer;
module_param(peer, bool, 0444);
MODULE_PARM_DESC(peer, "Let the C stack do it");

static size_t layer_map(struct bench *b, struct request *rq,
			unsigned int *segs)
{
	return bench_layer_map(b->layer, rq, segs);
}

static void layer_unmap(struct bench *b, struct request *rq)
{
	bench_layer_unmap(b->layer);
}

static size_t layer_map_list(struct bench *b, struct request *rq,
			     unsigned int *segs)
{
	return bench_layer_map_list(b->layer, b->list, b->nr, segs);
}

static bool nvme_save(struct bench *b, struct blk_dma_iter *iter)
{
	if (dma_use_iova(&b->state) || !dma_need_unmap(b->dev) ||
	    b->map == PCI_P2PDMA_MAP_BUS_ADDR)
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
	b->map = PCI_P2PDMA_MAP_NONE;
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
	b->map = iter.p2pdma.map;
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
	unsigned int i, attrs = 0;

	if (b->single != DMA_MAPPING_ERROR) {
		dma_unmap_page(b->dev, b->single, b->total, rq_dma_dir(rq));
		return;
	}
	if (b->map == PCI_P2PDMA_MAP_THRU_HOST_BRIDGE)
		attrs |= DMA_ATTR_MMIO;
	if (blk_rq_dma_unmap(rq, b->dev, &b->state, b->total, b->map))
		return;
	for (i = 0; i < b->nr_pieces; i++)
		dma_unmap_phys(b->dev, b->pieces[i].addr, b->pieces[i].len,
			       rq_dma_dir(rq), attrs);
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

const struct way layer = { "physdma", layer_map, layer_unmap };
static const struct way layer_list = { "physdma without pages", layer_map_list, layer_unmap };
const struct way nvme = { "blk_rq_dma_map_iter", nvme_map, nvme_unmap };
/* A peer that does nothing must be found out. */
static const struct way nothing = { "nothing", nothing_map, nothing_unmap };

/* A buffer that is mapped once, and what is done with it. */
struct premapped {
	void *buffer;
	u32 len;
	u64 (*f)(void *buffer, u32 len, unsigned int times);
	u64 bytes;
};

static void use_premapped(void *data)
{
	struct premapped *p = data;

	p->bytes = p->f(p->buffer, p->len, USES);
}

/*
 * What the memory of a request of @len bytes costs that is a slice of a buffer
 * of @pages pages, of RAM or of what starts at @base; beside @mapped, what it
 * costs to map and unmap it.
 */
static int run_premapped(struct bench *b, const char *name, const char *what, u32 len,
			 unsigned int pages, phys_addr_t base, u64 mapped)
{
	struct premapped p = { bench_buffer_new(b->layer, base, pages), len, bench_buffer_idle };
	u64 idle, in_use;
	int ret = 0;

	if (!p.buffer)
		return -ENOMEM;
	idle = measure(ROUNDS, use_premapped, &p).median;
	p.f = bench_buffer_use;
	in_use = measure(ROUNDS, use_premapped, &p).median;
	if (p.bytes < len || in_use <= idle) {
		pr_err("%s, %s: a slice that does nothing\n", name, what);
		ret = -EIO;
	} else {
		/* Hundredths of an instruction. */
		pr_info("premapped|%s|%s|%llu|%llu\n", name, what,
			div_u64((in_use - idle) * 100, USES), mapped * 100);
	}
	bench_buffer_free(p.buffer);
	return ret;
}

static const struct shape shapes[] = {
	{ "4K", 1, false, 0, SZ_4K, true },
	{ "16K contiguous", 4, false, 0, SZ_16K },
	{ "128K contiguous", 32, false, 0, SZ_128K, true },
	{ "128K in 32 pages", 32, true, 0, SZ_128K, true },
	{ "1M in 256 pages", 256, true, 0, SZ_1M },
	{ "120K in 31 pages, unaligned ends", 31, true, 0x800, 30 * SZ_4K },
};

struct request *make_request(struct bench *b, const struct shape *s)
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

void free_request(struct request *rq)
{
	struct bio *bio = rq->bio;

	rq->bio = NULL;
	bio_uninit(bio);
	kfree(bio);
	blk_mq_free_request(rq);
}

/* Whether the device was told of as many bytes as the request has. */
bool maps(struct trial *t)
{
	t->bytes = t->way->map(t->b, t->rq, &t->segs);
	if (t->bytes != blk_rq_payload_bytes(t->rq))
		return false;
	t->way->unmap(t->b, t->rq);
	return true;
}

/* Measures @ours beside @theirs, with the same request. */
static int compare_ways(struct bench *b, struct request *rq, const char *name, const char *what,
			const struct way *ours, const struct way *theirs)
{
	struct trial trials[] = { { ours, b, rq }, { theirs, b, rq } };
	struct cost costs[2];
	int i;

	for (i = 0; i < 2; i++) {
		if (!maps(&trials[i])) {
			pr_err("%s, %s: %s did not map the request\n", name, what,
			       trials[i].way->name);
			return -EIO;
		}
	}
	/* The one who gives the device more segments has an easier time. */
	if (trials[0].segs != trials[1].segs) {
		pr_err("%s, %s: %u segments, but %u by %s\n", name, what, trials[0].segs,
		       trials[1].segs, theirs->name);
		return -EINVAL;
	}
	for (i = 1; i >= 0; i--) {
		costs[i] = measure(ROUNDS, map_unmap, &trials[i]);
		/* What fails is cheap. */
		if (trials[i].bytes != blk_rq_payload_bytes(rq)) {
			pr_err("%s, %s: %s maps the request no more\n", name, what,
			       trials[i].way->name);
			return -EIO;
		}
	}
	pr_info("row|%s|%s|%llu|%llu|%u|%s|%llu|%llu|%u\n", name, what, costs[0].median,
		costs[0].spread, trials[0].segs, theirs->name, costs[1].median,
		costs[1].spread, trials[1].segs);
	b->mapped = costs[0].median;
	return 0;
}

/* Maps and unmaps @rq, for who counts what happens meanwhile. */
static int repeat(struct bench *b, struct request *rq, const char *name)
{
	struct trial t = { peer ? &nvme : &layer, b, rq };
	unsigned int i;

	for (i = 0; i < times; i++)
		if (!maps(&t))
			return -EIO;
	pr_info("repeated|%s|%u\n", name, t.segs);
	return 0;
}

/* The memory of @shape that @pages are, as pieces of what starts at @base. */
static void make_list(struct bench *b, const struct shape *s, phys_addr_t base)
{
	phys_addr_t start = page_to_phys(b->chunk);
	unsigned int i;

	b->nr = s->scattered ? s->pages : 1;
	for (i = 0; i < b->nr; i++) {
		struct page *page = s->scattered ? b->scattered[i] : b->chunk;

		b->list[i].phys = base + page_to_phys(page) - start;
		b->list[i].len = s->scattered ? PAGE_SIZE : s->bytes;
	}
}

/* @what of the memory is said; @base is where such memory without pages is. */
static int run_shape(struct bench *b, const struct shape *s, const char *what, phys_addr_t base)
{
	struct trial idle = { &nothing, b };
	struct request *rq;
	int ret;

	rq = make_request(b, s);
	if (IS_ERR(rq))
		return PTR_ERR(rq);

	if (times) {
		ret = repeat(b, rq, s->name);
		free_request(rq);
		return ret;
	}
	idle.rq = rq;
	if (maps(&idle)) {
		pr_err("a peer that does nothing passes as one that works\n");
		ret = -EINVAL;
	} else if (base) {
		make_list(b, s, base);
		ret = compare_ways(b, rq, s->name, what, &layer_list, &nvme);
	} else {
		ret = compare_ways(b, rq, s->name, what, &layer, &nvme);
	}
	/*
	 * Providers that C knows hand their memory out by the page. The buffer is
	 * scattered if it is RAM, and else one piece.
	 */
	if (!ret && (base || !b->paged) && s->p2p && (s->pages == 1 || s->scattered == !base))
		ret = run_premapped(b, s->name, what, s->bytes, s->bytes / SZ_4K,
				    base ? b->list[0].phys : 0, b->mapped);
	free_request(rq);
	return ret;
}

/* The cost of a request by how many pieces it has. */
static int run_pieces(struct bench *b, unsigned int pages)
{
	struct shape s = { "pieces", pages, true, 0, pages * SZ_4K };
	char name[16];

	snprintf(name, sizeof(name), "%u pieces", pages);
	s.name = name;
	/* Where time is not instructions, it says nothing. */
	return num_online_cpus() > 1 ? 0 : run_shape(b, &s, "RAM", 0);
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

/* Measures with @dev as the client, and @theirs as that of the C stack. */
static int run(struct bench *b, struct device *dev, struct device *theirs, const char *what,
	       phys_addr_t base)
{
	struct queue_limits lim = {
		.max_hw_sectors		= SZ_4M >> SECTOR_SHIFT,
		.max_segments		= MAX_PAGES + 1,
		.max_segment_size	= UINT_MAX,
		.virt_boundary_mask	= SZ_4K - 1,
		.dma_alignment		= 3,
		.features		= BLK_FEAT_PCI_P2PDMA,
	};
	int ret, i;

	b->dev = theirs;
	b->set = (struct blk_mq_tag_set) {
		.ops		= &ops,
		.nr_hw_queues	= 1,
		.queue_depth	= 2,
		.numa_node	= NUMA_NO_NODE,
	};
	ret = blk_mq_alloc_tag_set(&b->set);
	if (ret)
		return ret;
	b->q = blk_mq_alloc_queue(&b->set, &lim, NULL);
	if (IS_ERR(b->q)) {
		ret = PTR_ERR(b->q);
		goto free_set;
	}
	b->layer = bench_layer_new(dev, MAX_PAGES + 1);
	if (!b->layer) {
		ret = -ENOMEM;
		goto free_queue;
	}

	for (i = 1; growth && i <= MAX_PAGES && !ret; i *= 2)
		ret = run_pieces(b, i);
	if (growth && !ret && num_online_cpus() > 1)
		ret = run_cpus(b);
	for (i = 0; !growth && i < ARRAY_SIZE(shapes) && !ret; i++)
		if ((shapes[i].p2p || !what) && (!times || i == shape))
			ret = run_shape(b, &shapes[i], what ?: "RAM", base);

	bench_layer_free(b->layer);
free_queue:
	blk_mq_destroy_queue(b->q);
	blk_put_queue(b->q);
free_set:
	blk_mq_free_tag_set(&b->set);
	return ret;
}

static int run_ram(struct bench *b, struct device *dev)
{
	int ret, i;

	b->chunk = alloc_pages(GFP_KERNEL, get_order(SZ_128K));
	ret = b->chunk ? scatter(b) : -ENOMEM;
	if (!ret)
		ret = run(b, dev, dev, NULL, 0);
	for (i = 0; i < MAX_PAGES; i++)
		if (b->scattered[i])
			__free_page(b->scattered[i]);
	if (b->chunk)
		__free_pages(b->chunk, get_order(SZ_128K));
	return ret;
}

static int run_p2p(struct bench *b, struct device *dev, struct pci_dev *paged, void *memory,
		   struct pci_dev *pageless)
{
	phys_addr_t base = pageless ? pci_resource_start(pageless, IVSHMEM_BAR) : 0;
	int ret, i;

	b->paged = true;
	b->chunk = virt_to_page(memory);
	for (i = 0; i < P2P_BYTES / PAGE_SIZE / 2; i++)
		b->scattered[i] = b->chunk + 2 * i;

	ret = run(b, dev, dev, "other's, with pages", 0);
	if (!ret)
		ret = run(b, &paged->dev, &paged->dev, "own, with pages", 0);
	if (!ret && base)
		ret = run(b, dev, dev, "other's, without pages", base);
	if (!ret && base)
		ret = run(b, &pageless->dev, &paged->dev, "own, without pages", base);
	return ret;
}

/* The ivshmem that has pages, and one that has none. */
static void find_memory(struct pci_dev **paged, void **memory, struct pci_dev **pageless)
{
	struct pci_dev *pdev = NULL;

	while ((pdev = pci_get_device(PCI_VENDOR_ID_REDHAT_QUMRANET, IVSHMEM_ID, pdev))) {
		void *found = *memory ? NULL : pci_alloc_p2pmem(pdev, P2P_BYTES);

		if (found) {
			*memory = found;
			*paged = pci_dev_get(pdev);
		} else if (pdev->dev.driver && !*pageless) {
			*pageless = pci_dev_get(pdev);
		}
	}
}

static int run_all(struct device *dev)
{
	struct pci_dev *paged = NULL, *pageless = NULL;
	void *memory = NULL;
	struct bench *b;
	int ret = -ENOMEM;

	b = kzalloc_obj(*b);
	if (!b)
		return -ENOMEM;
	b->pool = mempool_create_kmalloc_pool(1, sizeof(struct piece) *
					      (MAX_PAGES + 1));
	if (!b->pool)
		goto free;
	find_memory(&paged, &memory, &pageless);
	if (memory)
		ret = run_p2p(b, dev, paged, memory, pageless);
	else
		ret = run_ram(b, dev);
	if (memory)
		pci_free_p2pmem(paged, memory, P2P_BYTES);
	pci_dev_put(pageless);
	pci_dev_put(paged);
	mempool_destroy(b->pool);
free:
	kfree(b);
	return ret;
}

/* Bytes of private data that the driver of a disk has beside each request. */
static unsigned int bytes_of(const char *disk)
{
	struct file *file = bdev_file_open_by_path(disk, BLK_OPEN_READ, NULL, NULL);
	struct request_queue *q;
	unsigned int bytes = 0;

	if (IS_ERR(file))
		return 0;
	q = bdev_get_queue(file_bdev(file));
	if (queue_is_mq(q))
		bytes = q->tag_set->cmd_size;
	bdev_fput(file);
	return bytes;
}

static int say_sizes(void)
{
	unsigned int ours = bytes_of("/dev/rnvme0n1"), theirs = bytes_of("/dev/nvme0n1");
	struct bench *b;

	if (!ours || !theirs)
		return -ENODEV;
	pr_info("bytes|a piece of memory|%zu|%zu\n", sizeof(struct physdma_bvec),
		sizeof(struct bio_vec));
	/* As in struct nvme_iod, whose flags are a byte. */
	pr_info("bytes|mapping state of a request|%zu|%zu\n", bench_layer_state(),
		sizeof(b->state) + sizeof(b->pieces) + sizeof(b->nr_pieces) + sizeof(u8) +
		sizeof(b->total));
	pr_info("bytes|all that a driver has for it|%u|%u\n", ours, theirs);
	return 0;
}

static int bench_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	int ret;

	ret = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	if (ret)
		return ret;
	ret = sizes ? say_sizes() : lookups ? bench_lookups(pdev) : run_all(&pdev->dev);
	if (ret)
		pr_err("failed: %d\n", ret);
	else
		pr_info("done\n");
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
