// SPDX-License-Identifier: GPL-2.0
/*
 * Bios to memory without pages, on a disk that is none: what bio_add_phys()
 * makes, who takes it, and that the memory is kept exactly until a bio ends.
 */

#include <kunit/test.h>
#include <linux/bio.h>
#include <linux/blk-crypto-profile.h>
#include <linux/blk-crypto.h>
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/pci-p2pdma.h>
#include <linux/pci.h>
#include <linux/physdma.h>
#include <linux/workqueue.h>

#define BAR		2
#define SIZE		(64 * 1024)
#define MOST		(8 * 1024)	/* bytes of a request */

static struct pci_dev *ivshmem;

/* To undo what the driver did. */
static u64 mask;

static int bind(struct pci_dev *pdev, const struct pci_device_id *id)
{
	if (ivshmem)
		return -ENODEV;
	mask = *pdev->dev.dma_mask;
	if (dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64)))
		return -EIO;
	ivshmem = pdev;
	return 0;
}

static void unbind(struct pci_dev *pdev)
{
	ivshmem = NULL;
	dma_set_mask_and_coherent(&pdev->dev, mask);
}

static const struct pci_device_id ids[] = {
	{ PCI_DEVICE(PCI_VENDOR_ID_REDHAT_QUMRANET, 0x1110) },
	{ }
};

static struct pci_driver driver = {
	.name = "block_phys_kunit",
	.id_table = ids,
	.probe = bind,
	.remove = unbind,
};

static int start(struct kunit_suite *suite)
{
	return pci_register_driver(&driver);
}

static void stop(struct kunit_suite *suite)
{
	pci_unregister_driver(&driver);
}

/* A disk, and what it does with requests. */
struct disk {
	struct blk_mq_tag_set set;
	struct gendisk *gd;
	struct request *held;
	blk_status_t status;
	bool hold;
	unsigned int requests;
	unsigned int bytes;
	bool phys;		/* all requests had the flag */
};

static blk_status_t queue_rq(struct blk_mq_hw_ctx *hctx,
			     const struct blk_mq_queue_data *bd)
{
	struct disk *disk = hctx->queue->queuedata;
	struct request *rq = bd->rq;

	disk->requests++;
	disk->bytes += blk_rq_bytes(rq);
	disk->phys &= !!(rq->cmd_flags & REQ_PHYS);
	blk_mq_start_request(rq);
	if (disk->hold && !disk->held)
		disk->held = rq;
	else
		blk_mq_end_request(rq, disk->status);
	return BLK_STS_OK;
}

static const struct blk_mq_ops ops = { .queue_rq = queue_rq };

static void free_disk(void *data)
{
	struct disk *disk = data;

	put_disk(disk->gd);
	blk_mq_free_tag_set(&disk->set);
}

static struct disk *make_disk(struct kunit *test, struct queue_limits *lim)
{
	struct disk *disk = kunit_kzalloc(test, sizeof(*disk), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, disk);
	disk->phys = true;
	disk->set.ops = &ops;
	disk->set.nr_hw_queues = 1;
	disk->set.queue_depth = 64;
	disk->set.numa_node = NUMA_NO_NODE;
	KUNIT_ASSERT_EQ(test, 0, blk_mq_alloc_tag_set(&disk->set));
	lim->max_hw_sectors = MOST >> SECTOR_SHIFT;
	disk->gd = blk_mq_alloc_disk(&disk->set, lim, disk);
	if (IS_ERR(disk->gd))
		blk_mq_free_tag_set(&disk->set);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, disk->gd);
	set_capacity(disk->gd, 1 << 20);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, free_disk, disk));
	return disk;
}

static struct disk *phys_disk(struct kunit *test)
{
	struct queue_limits lim = { .features = BLK_FEAT_PHYS };

	return make_disk(test, &lim);
}

static void unregister(void *provider)
{
	physdma_unregister(provider);
}

static struct physdma_provider *provide(struct kunit *test, u64 offset)
{
	struct physdma_provider *provider;

	KUNIT_ASSERT_NOT_NULL_MSG(test, ivshmem, "there is no ivshmem");
	provider = physdma_register(ivshmem, BAR, offset, SIZE);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, provider);
	return provider;
}

static struct physdma_provider *provide_for_all(struct kunit *test)
{
	struct physdma_provider *provider = provide(test, 0);

	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, unregister, provider));
	return provider;
}

static phys_addr_t memory(void)
{
	return pci_resource_start(ivshmem, BAR);
}

/* What a bio ends with that has @len bytes at @phys. */
static int submit(struct disk *disk, blk_opf_t opf, phys_addr_t phys, unsigned int len)
{
	struct bio *bio = bio_alloc(disk->gd->part0, 2, opf, GFP_KERNEL);
	int error = -ENOSPC;

	if (bio_add_phys(bio, phys, len))
		error = submit_bio_wait(bio);
	bio_put(bio);
	return error;
}

static void arithmetic(struct kunit *test)
{
	/* Of the last one nobody has ever seen a page. */
	static const phys_addr_t addresses[] = { 1, 0x1000, 0xfee00123, (1ULL << 51) + 7 };
	struct bio *bio = bio_alloc(NULL, 2, REQ_OP_READ, GFP_KERNEL);
	struct page *page = alloc_page(GFP_KERNEL);
	struct bio_vec bv;
	int i;

	KUNIT_ASSERT_NOT_NULL(test, page);
	for (i = 0; i < ARRAY_SIZE(addresses); i++) {
		bvec_set_phys(&bv, addresses[i], 12);
		KUNIT_EXPECT_EQ(test, addresses[i], bvec_phys(&bv));
		KUNIT_EXPECT_EQ(test, 12, bv.bv_len);
	}

	KUNIT_EXPECT_FALSE(test, bio_add_phys(bio, 0x1000, 0));
	KUNIT_EXPECT_FALSE(test, bio_add_phys(bio, PHYS_ADDR_MAX, 2));
	KUNIT_EXPECT_FALSE(test, bio->bi_opf & REQ_PHYS);

	/* Neighbours are one, others two, and there is no room for a third. */
	KUNIT_EXPECT_TRUE(test, bio_add_phys(bio, addresses[3], 1));
	KUNIT_EXPECT_TRUE(test, bio_add_phys(bio, addresses[3] + 1, 0x2000));
	KUNIT_EXPECT_EQ(test, 1, bio->bi_vcnt);
	KUNIT_EXPECT_TRUE(test, bio_add_phys(bio, 0x1000, 0x200));
	KUNIT_EXPECT_FALSE(test, bio_add_phys(bio, 0x8000, 0x200));
	KUNIT_EXPECT_TRUE(test, bio_add_phys(bio, 0x1200, 0x200));
	KUNIT_EXPECT_EQ(test, 2, bio->bi_vcnt);
	KUNIT_EXPECT_EQ(test, 0x2401, bio->bi_iter.bi_size);
	KUNIT_EXPECT_FALSE(test, bio_add_phys(bio, 0x1400, UINT_MAX));
	KUNIT_EXPECT_TRUE(test, bio->bi_opf & REQ_PHYS);

	/* Not both: whoever adds a page compares it with the one before. */
	KUNIT_EXPECT_EQ(test, 0, bio_add_page(bio, page, 512, 0));
	bio_reuse(bio, REQ_OP_WRITE);
	KUNIT_EXPECT_TRUE(test, bio->bi_opf & REQ_PHYS);
	KUNIT_EXPECT_EQ(test, 0x2401, bio->bi_iter.bi_size);
	bio_reset(bio, NULL, REQ_OP_READ);
	KUNIT_EXPECT_EQ(test, 512, bio_add_page(bio, page, 512, 0));
	KUNIT_EXPECT_FALSE(test, bio_add_phys(bio, 0x1000, 512));
	KUNIT_EXPECT_FALSE(test, bio->bi_opf & REQ_PHYS);
	__free_page(page);
	bio_put(bio);
}

static void inherited(struct kunit *test)
{
	struct queue_limits top, bottom = { };
	struct bio *bio, *clone, *split;

	bio = bio_alloc(NULL, 1, REQ_OP_READ, GFP_KERNEL);
	KUNIT_EXPECT_TRUE(test, bio_add_phys(bio, 0x1000, 4096));
	clone = bio_alloc_clone(NULL, bio, GFP_KERNEL, &fs_bio_set);
	KUNIT_ASSERT_NOT_NULL(test, clone);
	KUNIT_EXPECT_TRUE(test, clone->bi_opf & REQ_PHYS);
	split = bio_split(clone, 1, GFP_KERNEL, &fs_bio_set);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, split);
	KUNIT_EXPECT_TRUE(test, split->bi_opf & REQ_PHYS);
	KUNIT_EXPECT_TRUE(test, REQ_NOMERGE_FLAGS & REQ_PHYS);
	bio_put(split);
	bio_put(clone);
	bio_put(bio);

	/* A disk that is stacked on others. */
	blk_set_stacking_limits(&top);
	blk_set_stacking_limits(&bottom);
	bottom.features |= BLK_FEAT_PHYS | BLK_FEAT_ROTATIONAL;
	blk_stack_limits(&top, &bottom, 0);
	KUNIT_EXPECT_TRUE(test, top.features & BLK_FEAT_ROTATIONAL);
	KUNIT_EXPECT_FALSE(test, top.features & BLK_FEAT_PHYS);
}

static void refused(struct kunit *test)
{
	struct queue_limits plain = { };
	struct queue_limits checked = {
		.features = BLK_FEAT_PHYS,
		.integrity = {
			.csum_type = BLK_INTEGRITY_CSUM_CRC,
			.metadata_size = 8,
			.pi_tuple_size = 8,
			.interval_exp = 9,
		},
	};
	struct disk *disk;
	struct request *rq;
	struct bio *bio;

	provide_for_all(test);
	disk = make_disk(test, &plain);
	KUNIT_EXPECT_EQ(test, -EOPNOTSUPP, submit(disk, REQ_OP_READ, memory(), 4096));
	KUNIT_EXPECT_EQ(test, 0, disk->requests);
	disk = make_disk(test, &checked);
	KUNIT_EXPECT_EQ(test, -EOPNOTSUPP, submit(disk, REQ_OP_READ, memory(), 4096));
	KUNIT_EXPECT_EQ(test, 0, disk->requests);

	disk = phys_disk(test);
	KUNIT_EXPECT_EQ(test, -EOPNOTSUPP, submit(disk, REQ_OP_DISCARD, memory(), 4096));
	KUNIT_EXPECT_EQ(test, -EOPNOTSUPP, submit(disk, REQ_OP_WRITE_ZEROES, memory(), 4096));
	/* Nobody's; the end; RAM. */
	KUNIT_EXPECT_EQ(test, -EINVAL, submit(disk, REQ_OP_READ, memory() + SIZE, 512));
	KUNIT_EXPECT_EQ(test, -EINVAL, submit(disk, REQ_OP_READ, memory() + SIZE - 512, 1024));
	KUNIT_EXPECT_EQ(test, -EINVAL, submit(disk, REQ_OP_READ, memory() - 512, 1024));
	KUNIT_EXPECT_EQ(test, -EINVAL, submit(disk, REQ_OP_READ, 0x100000, 512));
	KUNIT_EXPECT_EQ(test, -EINVAL, submit(disk, REQ_OP_READ, 1ULL << 51, 512));
	/* Who sets the flag alone says something that is not so. */
	bio = bio_alloc(disk->gd->part0, 1, REQ_OP_READ | REQ_PHYS, GFP_KERNEL);
	KUNIT_EXPECT_EQ(test, -EINVAL, submit_bio_wait(bio));
	bio_put(bio);
	KUNIT_EXPECT_EQ(test, 0, disk->requests);
	KUNIT_EXPECT_EQ(test, 0, submit(disk, REQ_OP_READ, memory() + SIZE - 512, 512));
	KUNIT_EXPECT_EQ(test, 1, disk->requests);

	/* A passthrough request. */
	rq = blk_mq_alloc_request(disk->gd->queue, REQ_OP_DRV_IN, 0);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, rq);
	bio = bio_alloc(NULL, 1, REQ_OP_DRV_IN, GFP_KERNEL);
	KUNIT_EXPECT_TRUE(test, bio_add_phys(bio, memory(), 512));
	KUNIT_EXPECT_EQ(test, -EOPNOTSUPP, blk_rq_append_bio(rq, bio));
	bio_put(bio);
	blk_mq_free_request(rq);
}

#ifdef CONFIG_BLK_INLINE_ENCRYPTION
static int encrypt(struct disk *disk, const struct blk_crypto_key *key, struct page *page)
{
	static const u64 dun[BLK_CRYPTO_DUN_ARRAY_SIZE];
	struct bio *bio = bio_alloc(disk->gd->part0, 1, REQ_OP_WRITE, GFP_KERNEL);
	int error = -ENOSPC;

	bio_crypt_set_ctx(bio, key, dun, GFP_KERNEL);
	if (page ? bio_add_page(bio, page, 4096, 0) == 4096 :
		   bio_add_phys(bio, memory(), 4096))
		error = submit_bio_wait(bio);
	bio_put(bio);
	return error;
}

/* A disk that encrypts, so that nobody else could refuse it. */
static void encrypted(struct kunit *test)
{
	static const u8 raw[BLK_CRYPTO_MAX_RAW_KEY_SIZE] = { 1 };
	struct blk_crypto_profile *profile = kunit_kzalloc(test, sizeof(*profile), GFP_KERNEL);
	struct disk *disk = phys_disk(test);
	struct page *page = alloc_page(GFP_KERNEL);
	struct blk_crypto_key key;

	KUNIT_ASSERT_NOT_NULL(test, profile);
	KUNIT_ASSERT_NOT_NULL(test, page);
	provide_for_all(test);
	KUNIT_ASSERT_EQ(test, 0, blk_crypto_profile_init(profile, 0));
	profile->key_types_supported = BLK_CRYPTO_KEY_TYPE_RAW;
	profile->max_dun_bytes_supported = 8;
	profile->modes_supported[BLK_ENCRYPTION_MODE_AES_256_XTS] = 4096;
	KUNIT_EXPECT_TRUE(test, blk_crypto_register(profile, disk->gd->queue));
	KUNIT_ASSERT_EQ(test, 0,
			blk_crypto_init_key(&key, raw, 64, BLK_CRYPTO_KEY_TYPE_RAW,
					    BLK_ENCRYPTION_MODE_AES_256_XTS, 8, 4096,
					    BLK_CRYPTO_CFG_ALLOW_HW));
	KUNIT_EXPECT_EQ(test, 0, blk_crypto_start_using_key(disk->gd->part0, &key));
	KUNIT_EXPECT_EQ(test, 0, encrypt(disk, &key, page));
	KUNIT_EXPECT_EQ(test, 1, disk->requests);
	KUNIT_EXPECT_EQ(test, -EOPNOTSUPP, encrypt(disk, &key, NULL));
	KUNIT_EXPECT_EQ(test, 1, disk->requests);
	disk->gd->queue->crypto_profile = NULL;
	blk_crypto_profile_destroy(profile);
	__free_page(page);
}
#else
static void encrypted(struct kunit *test)
{
	kunit_skip(test, "there is no CONFIG_BLK_INLINE_ENCRYPTION");
}
#endif

static void two_providers(struct kunit *test)
{
	struct physdma_provider *other;
	struct disk *disk;
	struct bio *bio;

	provide_for_all(test);
	disk = phys_disk(test);
	other = provide(test, SIZE);
	bio = bio_alloc(disk->gd->part0, 2, REQ_OP_READ, GFP_KERNEL);
	KUNIT_EXPECT_TRUE(test, bio_add_phys(bio, memory(), 512));
	KUNIT_EXPECT_TRUE(test, bio_add_phys(bio, memory() + SIZE, 512));
	KUNIT_EXPECT_EQ(test, -EINVAL, submit_bio_wait(bio));
	bio_put(bio);
	/* Neighbours, which are one piece. */
	KUNIT_EXPECT_EQ(test, -EINVAL, submit(disk, REQ_OP_READ, memory() + SIZE - 512, 1024));
	KUNIT_EXPECT_EQ(test, 0, submit(disk, REQ_OP_WRITE, memory() + SIZE, 1024));
	KUNIT_EXPECT_EQ(test, 1, disk->requests);
	/* It would wait without end if a bio that was refused had kept it. */
	physdma_unregister(other);
}

struct errand {
	struct work_struct work;
	struct physdma_provider *provider;
	bool done;
};

static void run_errand(struct work_struct *work)
{
	struct errand *errand = container_of(work, struct errand, work);

	physdma_unregister(errand->provider);
	WRITE_ONCE(errand->done, true);
}

static void end_bio(struct bio *bio)
{
	*(int *)bio->bi_private = blk_status_to_errno(bio->bi_status);
	bio_put(bio);
}

/*
 * One bio is on its way, and keeps the memory; many others have ended in all ways
 * that there are. One reference too few, and the memory goes too early; one too
 * many, and it never goes.
 */
static void kept(struct kunit *test)
{
	struct bio *bio, *chained, *clone;
	struct errand errand = { };
	struct disk *disk;
	int error = 1, i;

	errand.provider = provide(test, 0);
	disk = phys_disk(test);
	disk->hold = true;
	/* Two requests, the first of which is held. */
	bio = bio_alloc(disk->gd->part0, 1, REQ_OP_READ, GFP_KERNEL);
	KUNIT_EXPECT_TRUE(test, bio_add_phys(bio, memory(), 2 * MOST));
	bio->bi_end_io = end_bio;
	bio->bi_private = &error;
	submit_bio(bio);
	KUNIT_ASSERT_NOT_NULL(test, disk->held);

	for (i = 0; i < 20; i++) {
		KUNIT_EXPECT_EQ(test, 0, submit(disk, REQ_OP_READ, memory(), 512));
		/* Cut into eight. */
		disk->requests = 0;
		disk->bytes = 0;
		KUNIT_EXPECT_EQ(test, 0, submit(disk, REQ_OP_WRITE, memory(), SIZE));
		KUNIT_EXPECT_EQ(test, SIZE / MOST, disk->requests);
		KUNIT_EXPECT_EQ(test, SIZE, disk->bytes);
		/* Failed by the device, in part too. */
		disk->status = BLK_STS_MEDIUM;
		KUNIT_EXPECT_EQ(test, -ENODATA, submit(disk, REQ_OP_READ, memory(), SIZE));
		disk->status = BLK_STS_OK;
		/* Never came there. */
		KUNIT_EXPECT_EQ(test, -EINVAL, submit(disk, REQ_OP_READ, memory(), SIZE + 512));
		KUNIT_EXPECT_EQ(test, -EIO, submit(disk, REQ_OP_READ, memory(), 100));
		/* Two that are chained. */
		bio = bio_alloc(disk->gd->part0, 1, REQ_OP_READ, GFP_KERNEL);
		chained = bio_alloc(disk->gd->part0, 1, REQ_OP_READ, GFP_KERNEL);
		KUNIT_EXPECT_TRUE(test, bio_add_phys(bio, memory(), MOST));
		KUNIT_EXPECT_TRUE(test, bio_add_phys(chained, memory() + MOST, 2 * MOST));
		bio_chain(chained, bio);
		submit_bio(chained);
		KUNIT_EXPECT_EQ(test, 0, submit_bio_wait(bio));
		/* A clone of its second half, sent after it. */
		clone = bio_alloc_clone(disk->gd->part0, bio, GFP_KERNEL, &fs_bio_set);
		clone->bi_iter = (struct bvec_iter){ .bi_size = 512, .bi_offset = 1024 };
		KUNIT_EXPECT_EQ(test, 0, submit_bio_wait(clone));
		bio_put(clone);
		bio_put(bio);
	}
	KUNIT_EXPECT_TRUE(test, disk->phys);

	INIT_WORK_ONSTACK(&errand.work, run_errand);
	schedule_work(&errand.work);
	msleep(100);
	KUNIT_EXPECT_FALSE(test, READ_ONCE(errand.done));
	KUNIT_EXPECT_EQ(test, 1, error);
	KUNIT_EXPECT_EQ(test, -ENODEV, submit(disk, REQ_OP_READ, memory(), 512));

	blk_mq_end_request(disk->held, BLK_STS_OK);
	flush_work(&errand.work);
	destroy_work_on_stack(&errand.work);
	KUNIT_EXPECT_EQ(test, 0, error);
	KUNIT_EXPECT_EQ(test, -EINVAL, submit(disk, REQ_OP_READ, memory(), 512));
}

static void live(struct kunit *test)
{
	struct physdma_provider *provider, *pages;
	struct pci_p2pdma_map_state state;
	struct physdma_limits limits = {
		.boundary_mask = U64_MAX,
		.max_segment_bytes = U32_MAX,
		.max_segments = 1,
	};
	struct physdma_client *own;
	phys_addr_t first, last;

	provider = provide(test, 0);
	pages = physdma_register_pages(ivshmem, BAR, SIZE, SIZE);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, pages);
	KUNIT_EXPECT_EQ(test, -EFAULT, physdma_live_get(0x100000, &first, &last));
	KUNIT_EXPECT_EQ(test, -EFAULT, physdma_live_get(memory() - 1, &first, &last));
	KUNIT_EXPECT_EQ(test, -EFAULT, physdma_live_get(memory() + SIZE, &first, &last));
	KUNIT_EXPECT_EQ(test, -EINVAL, physdma_live_get(memory(), NULL, &last));
	KUNIT_ASSERT_EQ(test, 0, physdma_live_get(memory() + SIZE - 1, &first, &last));
	KUNIT_EXPECT_EQ(test, memory(), first);
	KUNIT_EXPECT_EQ(test, memory() + SIZE - 1, last);

	own = physdma_client_create(&ivshmem->dev, &limits);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, own);
	KUNIT_EXPECT_EQ(test, -EINVAL, physdma_map_state(NULL, memory(), &state));
	KUNIT_EXPECT_EQ(test, -EINVAL, physdma_map_state(own, memory(), NULL));
	KUNIT_EXPECT_EQ(test, -EFAULT, physdma_map_state(own, 0x100000, &state));
	physdma_revoke(provider);
	KUNIT_EXPECT_EQ(test, -ENODEV, physdma_live_get(memory(), &first, &last));
	/* What is kept can be mapped still: by its own device, by its address. */
	KUNIT_ASSERT_EQ(test, 0, physdma_map_state(own, memory() + 512, &state));
	KUNIT_EXPECT_EQ(test, PCI_P2PDMA_MAP_BUS_ADDR, state.map);
	KUNIT_EXPECT_EQ(test, pci_bus_address(ivshmem, BAR) + 512,
			pci_p2pdma_bus_addr_map(state.mem, memory() + 512));
	physdma_client_destroy(own);

	/* A client that comes now gets nothing. */
	own = physdma_client_create(&ivshmem->dev, &limits);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, own);
	KUNIT_EXPECT_EQ(test, -ENODEV, physdma_map_state(own, memory(), &state));
	physdma_client_destroy(own);
	physdma_live_put(memory() + SIZE - 1);
	physdma_unregister(pages);
	physdma_unregister(provider);
}

static struct kunit_case block_phys_cases[] = {
	KUNIT_CASE(arithmetic),
	KUNIT_CASE(inherited),
	KUNIT_CASE(refused),
	KUNIT_CASE(encrypted),
	KUNIT_CASE(two_providers),
	KUNIT_CASE(kept),
	KUNIT_CASE(live),
	{ }
};

static struct kunit_suite block_phys_suite = {
	.name = "block_phys",
	.suite_init = start,
	.suite_exit = stop,
	.test_cases = block_phys_cases,
};

kunit_test_suite(block_phys_suite);

MODULE_DESCRIPTION("KUnit suite of bios to memory without pages");
MODULE_LICENSE("GPL");
