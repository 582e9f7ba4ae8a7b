// SPDX-License-Identifier: GPL-2.0
/*
 * include/linux/physdma.h as a C driver uses it, on real PCI devices: memory of
 * an ivshmem, mapped for an SSD. No device does anything: that data arrive is
 * shown by the scenarios.
 */

#include <kunit/test.h>
#include <linux/delay.h>
#include <linux/device/faux.h>
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/pci-p2pdma.h>
#include <linux/pci.h>
#include <linux/physdma.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#define IVSHMEM_BAR	2
#define SIZE		(64 * 1024)
#define NR_SEGMENTS	16

static const struct physdma_limits no_limits = {
	.boundary_mask = U64_MAX,
	.max_segment_bytes = U32_MAX,
	.max_segments = NR_SEGMENTS,
};

/* Devices that the driver was bound to: one of each kind. */
static struct pci_dev *ivshmem, *testdev, *ssd;

/* To undo what the driver did. */
static u64 masks[3];

static struct pci_dev **slot_of(struct pci_dev *pdev)
{
	if (pdev->class == PCI_CLASS_STORAGE_EXPRESS)
		return &ssd;
	return pdev->vendor == PCI_VENDOR_ID_REDHAT ? &testdev : &ivshmem;
}

static u64 *mask_of(struct pci_dev *pdev)
{
	struct pci_dev **slot = slot_of(pdev);

	return &masks[slot == &ssd ? 0 : slot == &testdev ? 1 : 2];
}

static int bind(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct pci_dev **slot = slot_of(pdev);

	if (*slot)
		return -ENODEV;
	*mask_of(pdev) = *pdev->dev.dma_mask;
	if (dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64)))
		return -EIO;
	*slot = pdev;
	return 0;
}

static void unbind(struct pci_dev *pdev)
{
	*slot_of(pdev) = NULL;
	dma_set_mask_and_coherent(&pdev->dev, *mask_of(pdev));
}

static const struct pci_device_id ids[] = {
	{ PCI_DEVICE(PCI_VENDOR_ID_REDHAT_QUMRANET, 0x1110) },
	{ PCI_DEVICE(PCI_VENDOR_ID_REDHAT, 0x0005) },
	{ PCI_DEVICE_CLASS(PCI_CLASS_STORAGE_EXPRESS, ~0) },
	{ }
};

static struct pci_driver driver = {
	.name = "physdma_c_kunit",
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

/* A test needs both: it fails where they are not. */
static int need_devices(struct kunit *test)
{
	KUNIT_ASSERT_NOT_NULL_MSG(test, ivshmem, "there is no ivshmem");
	KUNIT_ASSERT_NOT_NULL_MSG(test, ssd, "there is no SSD without a driver");
	return 0;
}

/* And that the one reaches the memory of the other. */
static void need_routes(struct kunit *test)
{
	need_devices(test);
	if (!IS_ENABLED(CONFIG_PCI_P2PDMA))
		kunit_skip(test, "there are no routes without CONFIG_PCI_P2PDMA");
}

KUNIT_DEFINE_ACTION_WRAPPER(unregister_action, physdma_unregister,
			    struct physdma_provider *);
KUNIT_DEFINE_ACTION_WRAPPER(destroy_action, physdma_client_destroy,
			    struct physdma_client *);
KUNIT_DEFINE_ACTION_WRAPPER(unmap_action, physdma_unmap,
			    struct physdma_mapping *);
KUNIT_DEFINE_ACTION_WRAPPER(destroy_faux, faux_device_destroy, struct faux_device *);

static void free_ram(void *page)
{
	free_pages((unsigned long)page, 1);
}

/* What one test needs is undone in the opposite order when it ends. */
static struct physdma_provider *provide(struct kunit *test)
{
	struct physdma_provider *provider;

	provider = physdma_register(ivshmem, IVSHMEM_BAR, 0, SIZE);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, provider);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, unregister_action, provider));
	return provider;
}

static struct physdma_client *client_of(struct kunit *test, struct device *dev,
					const struct physdma_limits *limits)
{
	struct physdma_client *client = physdma_client_create(dev, limits);

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, client);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, destroy_action, client));
	return client;
}

static struct physdma_mapping *empty(struct kunit *test)
{
	struct physdma_mapping *mapping;

	mapping = kunit_kzalloc(test, sizeof(*mapping), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, mapping);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, unmap_action, mapping));
	return mapping;
}

/* A page; the next one in memory is nobody's, so two of these do not meet. */
static phys_addr_t ram(struct kunit *test)
{
	unsigned long page = __get_free_pages(GFP_KERNEL, 1);

	KUNIT_ASSERT_NE(test, 0, page);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, free_ram, (void *)page));
	return virt_to_phys((void *)page);
}

static phys_addr_t memory(void)
{
	return pci_resource_start(ivshmem, IVSHMEM_BAR);
}

/* The device below which there is no PCI. */
static struct device *no_pci(struct kunit *test)
{
	struct faux_device *faux = faux_device_create("physdma_c_kunit", NULL, NULL);

	KUNIT_ASSERT_NOT_NULL(test, faux);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, destroy_faux, faux));
	KUNIT_ASSERT_EQ(test, 0, dma_coerce_mask_and_coherent(&faux->dev, DMA_BIT_MASK(64)));
	return &faux->dev;
}

/* What the device was told. */
struct told {
	unsigned int nr;
	unsigned int end_at;	/* which call returns @end; 0: none */
	int end;
	u64 bytes;
	struct physdma_segment segments[NR_SEGMENTS];
};

static int tell(const struct physdma_segment *segment, void *data)
{
	struct told *told = data;

	if (told->nr < NR_SEGMENTS)
		told->segments[told->nr] = *segment;
	told->nr++;
	told->bytes += segment->len;
	return told->nr == told->end_at ? told->end : 0;
}

static int map(struct physdma_client *client, struct physdma_mapping *mapping,
	       const struct physdma_bvec *bvecs, unsigned int nr,
	       enum physdma_miss miss, struct told *told)
{
	*told = (struct told){};
	return physdma_map(client, mapping, bvecs, nr, DMA_FROM_DEVICE, miss, tell, told);
}

static void register_errnos(struct kunit *test)
{
	struct resource *unused;
	u64 len;
	int bar;

	need_devices(test);
	KUNIT_ASSERT_NOT_NULL_MSG(test, testdev, "there is no pci-testdev");
	len = pci_resource_len(ivshmem, IVSHMEM_BAR);

#define REGISTER(...) PTR_ERR_OR_ZERO(physdma_register(__VA_ARGS__))
	KUNIT_EXPECT_EQ(test, -EINVAL, REGISTER(NULL, IVSHMEM_BAR, 0, SIZE));
	KUNIT_EXPECT_EQ(test, -EINVAL, REGISTER(ERR_PTR(-EIO), IVSHMEM_BAR, 0, SIZE));
	KUNIT_EXPECT_EQ(test, -EINVAL, REGISTER(ivshmem, -1, 0, SIZE));
	KUNIT_EXPECT_EQ(test, -EINVAL, REGISTER(ivshmem, 77, 0, SIZE));
	/* The device has no such BAR. */
	KUNIT_EXPECT_EQ(test, -EINVAL, REGISTER(ivshmem, 4, 0, SIZE));
	for (bar = 0; bar < PCI_STD_NUM_BARS; bar++)
		if (pci_resource_flags(testdev, bar) & IORESOURCE_IO)
			break;
	KUNIT_ASSERT_LT(test, bar, PCI_STD_NUM_BARS);
	KUNIT_EXPECT_EQ(test, -EINVAL, REGISTER(testdev, bar, 0, 1));
	/* Empty, beyond the end, wraps. */
	KUNIT_EXPECT_EQ(test, -EINVAL, REGISTER(ivshmem, IVSHMEM_BAR, 0, 0));
	KUNIT_EXPECT_EQ(test, -EINVAL, REGISTER(ivshmem, IVSHMEM_BAR, 0, len + 1));
	KUNIT_EXPECT_EQ(test, -EINVAL, REGISTER(ivshmem, IVSHMEM_BAR, len, 1));
	KUNIT_EXPECT_EQ(test, -EINVAL, REGISTER(ivshmem, IVSHMEM_BAR, U64_MAX, 2));

	/* A BAR that is made up, where there is RAM. */
	unused = &testdev->resource[5];
	KUNIT_ASSERT_EQ(test, 0, unused->flags);
	unused->start = ram(test);
	unused->end = unused->start + PAGE_SIZE - 1;
	unused->flags = IORESOURCE_MEM;
	KUNIT_EXPECT_EQ(test, -EINVAL, REGISTER(testdev, 5, 0, PAGE_SIZE));
	unused->start = 0;
	unused->end = 0;
	unused->flags = 0;

	ivshmem->non_mappable_bars = 1;
	KUNIT_EXPECT_EQ(test, -EOPNOTSUPP, REGISTER(ivshmem, IVSHMEM_BAR, 0, SIZE));
	ivshmem->non_mappable_bars = 0;

	provide(test);
	KUNIT_EXPECT_EQ(test, -EBUSY, REGISTER(ivshmem, IVSHMEM_BAR, 0, SIZE));
	KUNIT_EXPECT_EQ(test, -EBUSY, REGISTER(ivshmem, IVSHMEM_BAR, SIZE - 1, 1));
	KUNIT_EXPECT_EQ(test, -EBUSY, REGISTER(ivshmem, IVSHMEM_BAR, 0, len));
	KUNIT_EXPECT_EQ(test, -EBUSY,
			PTR_ERR_OR_ZERO(physdma_register_pages(ivshmem, IVSHMEM_BAR, 0, SIZE)));

	/* What ends nothing. */
	physdma_revoke(NULL);
	physdma_unregister(NULL);
	physdma_unregister(ERR_PTR(-EBUSY));
}

static void neighbours(struct kunit *test)
{
	struct physdma_provider *other, *found;

	need_devices(test);
	provide(test);
	other = physdma_register(ivshmem, IVSHMEM_BAR, SIZE, SIZE);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, other);

	found = physdma_provider_of(memory() + SIZE, SIZE);
	KUNIT_EXPECT_PTR_EQ(test, other, found);
	physdma_provider_put(found);
	KUNIT_EXPECT_EQ(test, -EFAULT, PTR_ERR(physdma_provider_of(memory() + SIZE - 1, 2)));

	physdma_unregister(other);
}

static void look_up(struct kunit *test)
{
	struct physdma_provider *provider, *found;
	struct physdma_range range;
	phys_addr_t first;

	need_devices(test);
	first = memory();
	KUNIT_EXPECT_NULL(test, physdma_provider_of(first, SIZE));
	provider = physdma_register(ivshmem, IVSHMEM_BAR, PAGE_SIZE, SIZE);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, provider);
	first += PAGE_SIZE;

	found = physdma_provider_of(first, SIZE);
	KUNIT_EXPECT_PTR_EQ(test, provider, found);
	physdma_provider_put(found);
	found = physdma_provider_of(first + SIZE - 1, 1);
	KUNIT_EXPECT_PTR_EQ(test, provider, found);
	physdma_provider_put(found);

	KUNIT_EXPECT_NULL(test, physdma_provider_of(first - 1, 1));
	KUNIT_EXPECT_NULL(test, physdma_provider_of(first + SIZE, 1));
	KUNIT_EXPECT_NULL(test, physdma_provider_of(ram(test), PAGE_SIZE));
	KUNIT_EXPECT_EQ(test, -EFAULT, PTR_ERR(physdma_provider_of(first - 1, 2)));
	KUNIT_EXPECT_EQ(test, -EFAULT, PTR_ERR(physdma_provider_of(first, SIZE + 1)));
	KUNIT_EXPECT_EQ(test, -EFAULT, PTR_ERR(physdma_provider_of(first - 1, SIZE + 2)));
	KUNIT_EXPECT_EQ(test, -EINVAL, PTR_ERR(physdma_provider_of(first, 0)));
	KUNIT_EXPECT_EQ(test, -EINVAL, PTR_ERR(physdma_provider_of(PHYS_ADDR_MAX, 2)));

	/* A reference outlives the memory. */
	found = physdma_provider_get(provider);
	KUNIT_EXPECT_PTR_EQ(test, provider, found);
	physdma_unregister(provider);
	KUNIT_EXPECT_NULL(test, physdma_provider_of(first, SIZE));
	memset(&range, 0xff, sizeof(range));
	physdma_provider_range(found, &range);
	KUNIT_EXPECT_PTR_EQ(test, ivshmem, range.pdev);
	KUNIT_EXPECT_EQ(test, IVSHMEM_BAR, range.bar);
	KUNIT_EXPECT_EQ(test, PAGE_SIZE, range.offset);
	KUNIT_EXPECT_EQ(test, first, range.first);
	KUNIT_EXPECT_EQ(test, first + SIZE - 1, range.last);
	physdma_provider_put(found);

	KUNIT_EXPECT_NULL(test, physdma_provider_get(NULL));
	physdma_provider_put(NULL);
	physdma_provider_put(ERR_PTR(-EFAULT));
}

static void clients(struct kunit *test)
{
	struct physdma_limits limits = no_limits;

	need_devices(test);
#define CREATE(...) PTR_ERR_OR_ZERO(physdma_client_create(__VA_ARGS__))
	KUNIT_EXPECT_EQ(test, -EINVAL, CREATE(NULL, &limits));
	KUNIT_EXPECT_EQ(test, -EINVAL, CREATE(&ssd->dev, NULL));
	limits.max_segments = 0;
	KUNIT_EXPECT_EQ(test, -EINVAL, CREATE(&ssd->dev, &limits));
	limits = no_limits;
	limits.max_segment_bytes = 0;
	KUNIT_EXPECT_EQ(test, -EINVAL, CREATE(&ssd->dev, &limits));
	physdma_client_destroy(NULL);
	physdma_client_destroy(ERR_PTR(-EINVAL));
}

/* The kernel itself says what the route is. */
static void route(struct kunit *test)
{
	struct pci_p2pdma_verdict verdict;
	struct physdma_provider *provider;
	struct physdma_client *before, *after, *own;
	struct physdma_route route;
	char why[80];
	u64 offset;

	need_routes(test);
	before = client_of(test, &ssd->dev, &no_limits);
	provider = provide(test);
	after = client_of(test, &ssd->dev, &no_limits);
	own = client_of(test, &ivshmem->dev, &no_limits);
	offset = pci_bus_address(ivshmem, IVSHMEM_BAR) - memory();

	memset(&route, 0xff, sizeof(route));
	memset(why, 0xff, sizeof(why));
	KUNIT_EXPECT_EQ(test, 0, physdma_route(own, provider, &route, why, sizeof(why)));
	KUNIT_EXPECT_EQ(test, PHYSDMA_ROUTE_INTERNAL, route.kind);
	KUNIT_EXPECT_EQ(test, offset, route.bus_offset);
	KUNIT_EXPECT_STREQ(test, "", why);

	pci_p2pdma_verdict(ivshmem, &ssd->dev, &verdict);
	memset(&route, 0xff, sizeof(route));
	switch (verdict.map) {
	case PCI_P2PDMA_MAP_BUS_ADDR:
		kunit_info(test, "by its bus address\n");
		KUNIT_EXPECT_EQ(test, 0, physdma_route(before, provider, &route, NULL, 0));
		KUNIT_EXPECT_EQ(test, PHYSDMA_ROUTE_BUS, route.kind);
		KUNIT_EXPECT_EQ(test, offset, route.bus_offset);
		break;
	case PCI_P2PDMA_MAP_THRU_HOST_BRIDGE:
		kunit_info(test, "through the host bridge\n");
		KUNIT_EXPECT_EQ(test, 0, physdma_route(before, provider, &route, NULL, 0));
		KUNIT_EXPECT_EQ(test, PHYSDMA_ROUTE_HOST_BRIDGE, route.kind);
		KUNIT_EXPECT_EQ(test, 0, route.bus_offset);
		break;
	default:
		kunit_info(test, "not at all\n");
		KUNIT_EXPECT_EQ(test, -EINVAL, physdma_route(before, provider, &route, why,
							     sizeof(why)));
		KUNIT_EXPECT_NOT_NULL(test, strstr(why, "host bridge"));
	}
	KUNIT_EXPECT_EQ(test, physdma_route(before, provider, &route, NULL, 0),
			physdma_route(after, provider, &route, NULL, 0));
}

static void no_route(struct kunit *test)
{
	struct physdma_provider *provider;
	struct physdma_client *client;
	struct physdma_mapping *mapping;
	struct physdma_bvec bvec;
	struct physdma_route route;
	struct told told;
	char why[80];

	need_routes(test);
	provider = provide(test);
	client = client_of(test, no_pci(test), &no_limits);
	mapping = empty(test);
	bvec = (struct physdma_bvec){ memory(), PAGE_SIZE };

	KUNIT_EXPECT_EQ(test, -EINVAL, physdma_route(client, provider, &route, why, sizeof(why)));
	KUNIT_EXPECT_STREQ(test, "the client is not a PCI device", why);
	KUNIT_EXPECT_EQ(test, -EINVAL, physdma_route(client, provider, &route, NULL, 0));
	/* As much as there is room for. */
	memset(why, 'x', sizeof(why));
	KUNIT_EXPECT_EQ(test, -EINVAL, physdma_route(client, provider, &route, why, 11));
	KUNIT_EXPECT_STREQ(test, "the client", why);
	KUNIT_EXPECT_EQ(test, 'x', why[11]);
	KUNIT_EXPECT_EQ(test, -EINVAL, physdma_route(client, provider, &route, why, 0));
	KUNIT_EXPECT_STREQ(test, "the client", why);

	KUNIT_EXPECT_EQ(test, -EINVAL, map(client, mapping, &bvec, 1, PHYSDMA_MISS_REFUSE, &told));
	/* It is not RAM, whatever the caller says. */
	KUNIT_EXPECT_EQ(test, -EINVAL, map(client, mapping, &bvec, 1, PHYSDMA_MISS_RAM, &told));
	KUNIT_EXPECT_EQ(test, 0, told.nr);

	/* Arguments that are none. */
	KUNIT_EXPECT_EQ(test, -EINVAL, physdma_route(NULL, provider, &route, why, sizeof(why)));
	KUNIT_EXPECT_STREQ(test, "", why);
	KUNIT_EXPECT_EQ(test, -EINVAL, physdma_route(client, NULL, &route, why, sizeof(why)));
	KUNIT_EXPECT_EQ(test, -EINVAL, physdma_route(client, provider, NULL, why, sizeof(why)));
}

static void map_ram(struct kunit *test)
{
	struct physdma_client *client;
	struct physdma_mapping *mapping;
	struct physdma_bvec list[3];
	struct told told;
	bool one_range;

	need_devices(test);
	client = client_of(test, &ssd->dev, &no_limits);
	mapping = empty(test);
	for (int i = 0; i < ARRAY_SIZE(list); i++)
		list[i] = (struct physdma_bvec){ ram(test), PAGE_SIZE };
	list[0].phys += 512;
	list[0].len -= 512;
	list[1].len -= PAGE_SIZE / 2;

	KUNIT_EXPECT_EQ(test, 1, map(client, mapping, list, 1, PHYSDMA_MISS_RAM, &told));
	KUNIT_EXPECT_EQ(test, 1, told.nr);
	KUNIT_EXPECT_EQ(test, PAGE_SIZE - 512, told.bytes);
	KUNIT_EXPECT_EQ(test, PHYSDMA_ORIGIN_MAPPED, told.segments[0].origin);
	KUNIT_EXPECT_EQ(test, 0, told.segments[0].bar);
	KUNIT_EXPECT_EQ(test, 0, told.segments[0].bar_offset);
	/* The offset in the page stays. */
	KUNIT_EXPECT_EQ(test, 512, told.segments[0].dma % PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, -EBUSY, map(client, mapping, list, 1, PHYSDMA_MISS_RAM, &told));
	KUNIT_EXPECT_EQ(test, 0, told.nr);
	physdma_unmap(mapping);
	physdma_unmap(mapping);

	/* The last of them ends in its page: one range where an IOMMU makes one. */
	one_range = dma_get_merge_boundary(&ssd->dev) == PAGE_SIZE - 1;
	KUNIT_EXPECT_EQ(test, one_range ? 1 : 2,
			map(client, mapping, list, 2, PHYSDMA_MISS_RAM, &told));
	KUNIT_EXPECT_EQ(test, 2 * PAGE_SIZE - 512 - PAGE_SIZE / 2, told.bytes);
	physdma_unmap(mapping);
	/* Not in the middle. */
	KUNIT_EXPECT_EQ(test, 3, map(client, mapping, list, 3, PHYSDMA_MISS_RAM, &told));
	KUNIT_EXPECT_EQ(test, list[2].len, told.segments[2].len);
	physdma_unmap(mapping);

	/* Nobody said that it is RAM. */
	KUNIT_EXPECT_EQ(test, -EFAULT, map(client, mapping, list, 1, PHYSDMA_MISS_REFUSE, &told));
	KUNIT_EXPECT_EQ(test, 0, told.nr);
}

static void map_provider(struct kunit *test)
{
	struct physdma_provider *provider;
	struct physdma_client *client, *own;
	struct physdma_mapping *mapping;
	struct physdma_bvec list[3];
	struct physdma_route route;
	struct told told;
	int nr;

	need_routes(test);
	provider = provide(test);
	client = client_of(test, &ssd->dev, &no_limits);
	own = client_of(test, &ivshmem->dev, &no_limits);
	mapping = empty(test);
	list[0] = (struct physdma_bvec){ memory() + PAGE_SIZE, PAGE_SIZE };
	list[1] = (struct physdma_bvec){ ram(test), PAGE_SIZE };
	list[2] = (struct physdma_bvec){ memory() + 4 * PAGE_SIZE, 512 };

	KUNIT_ASSERT_EQ(test, 0, physdma_route(client, provider, &route, NULL, 0));
	KUNIT_EXPECT_EQ(test, 1, map(client, mapping, list, 1, PHYSDMA_MISS_REFUSE, &told));
	KUNIT_EXPECT_EQ(test, PAGE_SIZE, told.bytes);
	if (route.kind == PHYSDMA_ROUTE_BUS) {
		KUNIT_EXPECT_EQ(test, PHYSDMA_ORIGIN_BUS, told.segments[0].origin);
		KUNIT_EXPECT_EQ(test, list[0].phys + route.bus_offset, told.segments[0].dma);
	} else {
		KUNIT_EXPECT_EQ(test, PHYSDMA_ORIGIN_MAPPED, told.segments[0].origin);
	}
	physdma_unmap(mapping);

	/* Memory of the device itself has an address in its BAR. */
	KUNIT_EXPECT_EQ(test, 1, map(own, mapping, list, 1, PHYSDMA_MISS_REFUSE, &told));
	KUNIT_EXPECT_EQ(test, PHYSDMA_ORIGIN_INTERNAL, told.segments[0].origin);
	KUNIT_EXPECT_EQ(test, IVSHMEM_BAR, told.segments[0].bar);
	KUNIT_EXPECT_EQ(test, PAGE_SIZE, told.segments[0].bar_offset);
	KUNIT_EXPECT_EQ(test, pci_bus_address(ivshmem, IVSHMEM_BAR) + PAGE_SIZE,
			told.segments[0].dma);
	/* An address is all that there is, but the mapping is in use. */
	KUNIT_EXPECT_EQ(test, -EBUSY, map(own, mapping, list, 1, PHYSDMA_MISS_REFUSE, &told));
	physdma_unmap(mapping);

	/* All kinds together, in order. */
	KUNIT_EXPECT_EQ(test, 3, map(own, mapping, list, 3, PHYSDMA_MISS_RAM, &told));
	KUNIT_EXPECT_EQ(test, PHYSDMA_ORIGIN_INTERNAL, told.segments[0].origin);
	KUNIT_EXPECT_EQ(test, PHYSDMA_ORIGIN_MAPPED, told.segments[1].origin);
	KUNIT_EXPECT_EQ(test, PHYSDMA_ORIGIN_INTERNAL, told.segments[2].origin);
	KUNIT_EXPECT_EQ(test, 4 * PAGE_SIZE, told.segments[2].bar_offset);
	KUNIT_EXPECT_EQ(test, 512, told.segments[2].len);
	physdma_unmap(mapping);
	nr = map(client, mapping, list, 3, PHYSDMA_MISS_RAM, &told);
	KUNIT_EXPECT_GT(test, nr, 0);
	KUNIT_EXPECT_EQ(test, nr, told.nr);
	KUNIT_EXPECT_EQ(test, 2 * PAGE_SIZE + 512, told.bytes);
	physdma_unmap(mapping);
	/* The RAM among it nobody knows of. */
	KUNIT_EXPECT_EQ(test, -EFAULT, map(client, mapping, list, 3, PHYSDMA_MISS_REFUSE, &told));
	/* Neither what comes behind the range. */
	list[0].phys = memory() + SIZE - 512;
	KUNIT_EXPECT_EQ(test, -EFAULT, map(client, mapping, list, 1, PHYSDMA_MISS_REFUSE, &told));
	KUNIT_EXPECT_EQ(test, 0, told.nr);
}

static void map_errnos(struct kunit *test)
{
	struct physdma_limits limits = no_limits;
	struct physdma_mapping *mapping;
	struct physdma_client *client, *small;
	struct physdma_bvec bvec, bad;
	struct told told = {};

	need_devices(test);
	client = client_of(test, &ssd->dev, &no_limits);
	mapping = empty(test);
	bvec = (struct physdma_bvec){ ram(test), PAGE_SIZE };

#define MAP(client, mapping, bvecs, nr, dir, miss, fn)				\
	physdma_map(client, mapping, bvecs, nr, DMA_##dir, PHYSDMA_MISS_##miss, fn, &told)
	KUNIT_EXPECT_EQ(test, -EINVAL, MAP(NULL, mapping, &bvec, 1, TO_DEVICE, RAM, tell));
	KUNIT_EXPECT_EQ(test, -EINVAL, MAP(client, NULL, &bvec, 1, TO_DEVICE, RAM, tell));
	KUNIT_EXPECT_EQ(test, -EINVAL, MAP(client, mapping, NULL, 1, TO_DEVICE, RAM, tell));
	KUNIT_EXPECT_EQ(test, -EINVAL, MAP(client, mapping, &bvec, 0, TO_DEVICE, RAM, tell));
	KUNIT_EXPECT_EQ(test, -EINVAL, MAP(client, mapping, &bvec, 0, TO_DEVICE, REFUSE, tell));
	KUNIT_EXPECT_EQ(test, -EINVAL, MAP(client, mapping, &bvec, 1, NONE, RAM, tell));
	KUNIT_EXPECT_EQ(test, -EINVAL, MAP(client, mapping, &bvec, 1, TO_DEVICE, RAM, NULL));
	KUNIT_EXPECT_EQ(test, -EINVAL, physdma_map(client, mapping, &bvec, 1, 77,
						   PHYSDMA_MISS_RAM, tell, &told));
	KUNIT_EXPECT_EQ(test, -EINVAL, physdma_map(client, mapping, &bvec, 1, DMA_TO_DEVICE,
						   77, tell, &told));
	bad = (struct physdma_bvec){ bvec.phys, 0 };
	KUNIT_EXPECT_EQ(test, -EINVAL, MAP(client, mapping, &bad, 1, TO_DEVICE, RAM, tell));
	bad = (struct physdma_bvec){ PHYS_ADDR_MAX, 2 };
	KUNIT_EXPECT_EQ(test, -EINVAL, MAP(client, mapping, &bad, 1, TO_DEVICE, RAM, tell));
	KUNIT_EXPECT_EQ(test, 0, told.nr);

	/* Segments are cut, and may become too many. */
	limits.max_segment_bytes = PAGE_SIZE / 4;
	limits.max_segments = 4;
	small = client_of(test, &ssd->dev, &limits);
	KUNIT_EXPECT_EQ(test, 4, map(small, mapping, &bvec, 1, PHYSDMA_MISS_RAM, &told));
	KUNIT_EXPECT_EQ(test, PAGE_SIZE, told.bytes);
	KUNIT_EXPECT_EQ(test, told.segments[0].dma + 3 * PAGE_SIZE / 4, told.segments[3].dma);
	physdma_unmap(mapping);
	limits.max_segments = 3;
	small = client_of(test, &ssd->dev, &limits);
	KUNIT_EXPECT_EQ(test, -EINVAL, map(small, mapping, &bvec, 1, PHYSDMA_MISS_RAM, &told));
	limits = no_limits;
	limits.boundary_mask = PAGE_SIZE / 2 - 1;
	small = client_of(test, &ssd->dev, &limits);
	KUNIT_EXPECT_EQ(test, 2, map(small, mapping, &bvec, 1, PHYSDMA_MISS_RAM, &told));
	physdma_unmap(mapping);

	/* Every direction that is one. */
	KUNIT_EXPECT_EQ(test, 1, MAP(client, mapping, &bvec, 1, BIDIRECTIONAL, RAM, tell));
	physdma_unmap(mapping);
	KUNIT_EXPECT_EQ(test, 1, MAP(client, mapping, &bvec, 1, TO_DEVICE, RAM, tell));
	physdma_unmap(mapping);
	physdma_unmap(NULL);
}

/* What the function returns ends it, and leaves nothing behind. */
static void map_ended(struct kunit *test)
{
	struct physdma_limits limits = no_limits;
	struct physdma_mapping *mapping;
	struct physdma_client *client;
	struct physdma_bvec bvec;
	struct told told = { .end_at = 2, .end = -EXDEV };

	need_devices(test);
	limits.max_segment_bytes = 1024;
	client = client_of(test, &ssd->dev, &limits);
	mapping = empty(test);
	bvec = (struct physdma_bvec){ ram(test), PAGE_SIZE };

	KUNIT_EXPECT_EQ(test, -EXDEV, MAP(client, mapping, &bvec, 1, TO_DEVICE, RAM, tell));
	KUNIT_EXPECT_EQ(test, 2, told.nr);
	/* Not an errno. */
	told = (struct told){ .end_at = 1, .end = 77 };
	KUNIT_EXPECT_EQ(test, -EINVAL, MAP(client, mapping, &bvec, 1, TO_DEVICE, RAM, tell));
	KUNIT_EXPECT_EQ(test, 1, told.nr);
	told = (struct told){};
	KUNIT_EXPECT_EQ(test, 4, MAP(client, mapping, &bvec, 1, TO_DEVICE, RAM, tell));
}

static void map_atomic(struct kunit *test)
{
	struct physdma_client *client;
	struct physdma_mapping *mapping;
	struct physdma_bvec list[2];
	struct told *told;
	unsigned long flags;
	int nr;

	need_routes(test);
	provide(test);
	client = client_of(test, &ssd->dev, &no_limits);
	mapping = empty(test);
	told = kunit_kzalloc(test, sizeof(*told), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, told);
	list[0] = (struct physdma_bvec){ ram(test), PAGE_SIZE };
	list[1] = (struct physdma_bvec){ memory(), PAGE_SIZE };

	local_irq_save(flags);
	nr = map(client, mapping, list, 2, PHYSDMA_MISS_RAM, told);
	physdma_unmap(mapping);
	local_irq_restore(flags);
	KUNIT_EXPECT_GT(test, nr, 0);
	KUNIT_EXPECT_EQ(test, 2 * PAGE_SIZE, told->bytes);
}

/* Something that sleeps long, done by somebody else. */
struct errand {
	struct work_struct work;
	struct completion done;
	struct physdma_provider *provider;
	struct pci_driver *driver;
};

static void run_errand(struct work_struct *work)
{
	struct errand *errand = container_of(work, struct errand, work);

	if (errand->provider)
		physdma_unregister(errand->provider);
	else
		pci_unregister_driver(errand->driver);
	complete(&errand->done);
}

static bool is_done(struct errand *errand, unsigned int ms)
{
	return wait_for_completion_timeout(&errand->done, msecs_to_jiffies(ms));
}

/* Waits until new mappings of the list get ENODEV; -ETIME if they never do. */
static int wait_for_enodev(struct physdma_client *client, struct physdma_mapping *mapping,
			   const struct physdma_bvec *bvec)
{
	struct told told;

	for (int i = 0; i < 250; i++) {
		/* Some have it with its pages. */
		int ret = map(client, mapping, bvec, 1, PHYSDMA_MISS_RAM, &told);

		if (ret == -ENODEV)
			return ret;
		physdma_unmap(mapping);
		msleep(20);
	}
	return -ETIME;
}

/* In the design's order: no new mappings; wait for the old ones; out of the registry. */
static void revocation(struct kunit *test)
{
	static struct errand errand;
	struct physdma_provider *provider, *weak;
	struct physdma_mapping *mapping, *other;
	struct physdma_client *client, *late;
	struct physdma_bvec bvec;
	struct physdma_route route;
	struct told told;
	char why[80];

	need_routes(test);
	client = client_of(test, &ssd->dev, &no_limits);
	provider = physdma_register(ivshmem, IVSHMEM_BAR, 0, SIZE);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, provider);
	weak = physdma_provider_get(provider);
	mapping = kunit_kzalloc(test, sizeof(*mapping), GFP_KERNEL);
	other = kunit_kzalloc(test, sizeof(*other), GFP_KERNEL);
	bvec = (struct physdma_bvec){ memory(), PAGE_SIZE };
	KUNIT_EXPECT_EQ(test, 1, map(client, mapping, &bvec, 1, PHYSDMA_MISS_REFUSE, &told));

	/* The first step only. */
	physdma_revoke(provider);
	physdma_revoke(provider);
	KUNIT_EXPECT_EQ(test, -ENODEV, map(client, other, &bvec, 1, PHYSDMA_MISS_REFUSE, &told));
	/* It must not look like RAM. */
	KUNIT_EXPECT_EQ(test, -ENODEV, map(client, other, &bvec, 1, PHYSDMA_MISS_RAM, &told));
	KUNIT_EXPECT_EQ(test, -ENODEV, physdma_route(client, provider, &route, why, sizeof(why)));
	KUNIT_EXPECT_STREQ(test, "the provider is gone", why);
	KUNIT_EXPECT_EQ(test, -EBUSY, REGISTER(ivshmem, IVSHMEM_BAR, 0, SIZE));
	/* Who comes now has no route. */
	late = client_of(test, &ssd->dev, &no_limits);
	KUNIT_EXPECT_EQ(test, -ENODEV, map(late, other, &bvec, 1, PHYSDMA_MISS_RAM, &told));

	/* Nothing, or else it is waited for. */
	physdma_unmap(other);
	init_completion(&errand.done);
	INIT_WORK(&errand.work, run_errand);
	errand.provider = provider;
	schedule_work(&errand.work);
	KUNIT_EXPECT_FALSE(test, is_done(&errand, 200));
	provider = physdma_provider_of(bvec.phys, bvec.len);
	KUNIT_EXPECT_PTR_EQ(test, weak, provider);
	physdma_provider_put(provider);
	KUNIT_EXPECT_EQ(test, -EBUSY, REGISTER(ivshmem, IVSHMEM_BAR, 0, SIZE));

	physdma_unmap(mapping);
	KUNIT_EXPECT_TRUE(test, is_done(&errand, 5000));
	flush_work(&errand.work);
	KUNIT_EXPECT_NULL(test, physdma_provider_of(bvec.phys, bvec.len));
	KUNIT_EXPECT_EQ(test, -EFAULT, map(client, other, &bvec, 1, PHYSDMA_MISS_REFUSE, &told));
	KUNIT_EXPECT_EQ(test, -ENODEV, physdma_route(client, weak, &route, NULL, 0));
	physdma_provider_put(weak);

	/* The range is free again. */
	provide(test);
}

static struct kunit_case physdma_c_cases[] = {
	KUNIT_CASE(register_errnos),
	KUNIT_CASE(neighbours),
	KUNIT_CASE(look_up),
	KUNIT_CASE(clients),
	KUNIT_CASE(route),
	KUNIT_CASE(no_route),
	KUNIT_CASE(map_ram),
	KUNIT_CASE(map_provider),
	KUNIT_CASE(map_errnos),
	KUNIT_CASE(map_ended),
	KUNIT_CASE(map_atomic),
	KUNIT_CASE(revocation),
	{ }
};

static struct kunit_suite physdma_c_suite = {
	.name = "physdma_c",
	.suite_init = start,
	.suite_exit = stop,
	.test_cases = physdma_c_cases,
};

/*
 * A driver that adds its device's memory as C nvme adds a CMB: with pages, for
 * which the registry answers too.
 */
#define PAGES_OFFSET	SZ_4M
#define PAGES_SIZE	SZ_2M

static struct pci_dev *pages_dev;
static int pages_error;

static int bind_pages(struct pci_dev *pdev, const struct pci_device_id *id)
{
	pages_error = pci_p2pdma_add_resource(pdev, IVSHMEM_BAR, PAGES_SIZE, PAGES_OFFSET);
	pages_dev = pdev;
	return 0;
}

static void unbind_pages(struct pci_dev *pdev)
{
	pages_dev = NULL;
}

static const struct pci_device_id pages_ids[] = {
	{ PCI_DEVICE(PCI_VENDOR_ID_REDHAT_QUMRANET, 0x1110) },
	{ }
};

static struct pci_driver pages_driver = {
	.name = "physdma_c_kunit_pages",
	.id_table = pages_ids,
	.probe = bind_pages,
	.remove = unbind_pages,
};

static const struct pci_device_id client_ids[] = {
	{ PCI_DEVICE_CLASS(PCI_CLASS_STORAGE_EXPRESS, ~0) },
	{ }
};

static struct pci_driver client_driver = {
	.name = "physdma_c_kunit_client",
	.id_table = client_ids,
	.probe = bind,
	.remove = unbind,
};

static int start_client(struct kunit_suite *suite)
{
	return pci_register_driver(&client_driver);
}

static void stop_client(struct kunit_suite *suite)
{
	pci_unregister_driver(&client_driver);
}

static phys_addr_t pages(void)
{
	return pci_resource_start(pages_dev, IVSHMEM_BAR) + PAGES_OFFSET;
}

static void bind_for(struct kunit *test)
{
	KUNIT_ASSERT_NOT_NULL_MSG(test, ssd, "there is no SSD without a driver");
	if (!IS_ENABLED(CONFIG_PHYSDMA_PAGES_KUNIT_TEST))
		kunit_skip(test, "no CONFIG_PHYSDMA_PAGES_KUNIT_TEST");
	KUNIT_ASSERT_EQ(test, 0, pci_register_driver(&pages_driver));
}

static void pages_found(struct kunit *test)
{
	struct physdma_provider *provider;
	struct physdma_client *client;
	struct physdma_mapping *mapping;
	struct physdma_bvec bvec;
	struct physdma_range range = {};
	struct pci_dev *pdev;
	struct told told;

	client = client_of(test, &ssd->dev, &no_limits);
	mapping = empty(test);
	bind_for(test);
	pdev = pages_dev;
	KUNIT_EXPECT_NOT_NULL_MSG(test, pdev, "there is no ivshmem");
	KUNIT_EXPECT_EQ(test, 0, pages_error);
	if (!pdev || pages_error)
		goto unregister;
	bvec = (struct physdma_bvec){ pages(), PAGES_SIZE };

	provider = physdma_provider_of(bvec.phys, bvec.len);
	KUNIT_EXPECT_NOT_ERR_OR_NULL(test, provider);
	if (!IS_ERR_OR_NULL(provider))
		physdma_provider_range(provider, &range);
	KUNIT_EXPECT_PTR_EQ(test, pdev, range.pdev);
	KUNIT_EXPECT_EQ(test, IVSHMEM_BAR, range.bar);
	KUNIT_EXPECT_EQ(test, PAGES_OFFSET, range.offset);
	KUNIT_EXPECT_EQ(test, bvec.phys, range.first);
	KUNIT_EXPECT_EQ(test, bvec.phys + PAGES_SIZE - 1, range.last);
	physdma_provider_put(provider);
	KUNIT_EXPECT_NULL(test, physdma_provider_of(bvec.phys - 1, 1));
	KUNIT_EXPECT_NULL(test, physdma_provider_of(bvec.phys + bvec.len, 1));

	/* Its driver hands it out, so that an address is not enough. */
	KUNIT_EXPECT_EQ(test, -EFAULT, map(client, mapping, &bvec, 1, PHYSDMA_MISS_REFUSE, &told));
	KUNIT_EXPECT_EQ(test, 1, map(client, mapping, &bvec, 1, PHYSDMA_MISS_RAM, &told));
	physdma_unmap(mapping);

	/* One range, one provider. */
	KUNIT_EXPECT_EQ(test, -EBUSY, REGISTER(pdev, IVSHMEM_BAR, PAGES_OFFSET, SIZE));
	KUNIT_EXPECT_EQ(test, -EBUSY,
			pci_p2pdma_add_resource(pdev, IVSHMEM_BAR, PAGES_SIZE, PAGES_OFFSET));
	/* The second has undone nothing of the first. */
	provider = physdma_provider_of(bvec.phys, bvec.len);
	KUNIT_EXPECT_NOT_ERR_OR_NULL(test, provider);
	physdma_provider_put(provider);
unregister:
	pci_unregister_driver(&pages_driver);
	if (pdev)
		KUNIT_EXPECT_NULL(test, physdma_provider_of(pci_resource_start(pdev, IVSHMEM_BAR),
							    PAGES_OFFSET + PAGES_SIZE));
}

/* Memory without pages comes first. */
static void pages_refused(struct kunit *test)
{
	struct physdma_provider *provider;

	bind_for(test);
	KUNIT_EXPECT_NOT_NULL_MSG(test, pages_dev, "there is no ivshmem");
	if (!pages_dev)
		goto unregister;

	provider = physdma_register(pages_dev, IVSHMEM_BAR, PAGES_OFFSET + 2 * PAGES_SIZE, SIZE);
	KUNIT_EXPECT_NOT_ERR_OR_NULL(test, provider);
	KUNIT_EXPECT_EQ(test, -EBUSY, pci_p2pdma_add_resource(pages_dev, IVSHMEM_BAR, PAGES_SIZE,
							      PAGES_OFFSET + 2 * PAGES_SIZE));
	physdma_unregister(provider);
	/* Nothing was left behind. */
	KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_add_resource(pages_dev, IVSHMEM_BAR, PAGES_SIZE,
							 PAGES_OFFSET + 2 * PAGES_SIZE));
unregister:
	pci_unregister_driver(&pages_driver);
}

/* As long as there is a page its memory is known, but not mapped any more. */
static void pages_last(struct kunit *test)
{
	static struct errand errand;
	struct physdma_provider *provider;
	struct physdma_client *client;
	struct physdma_mapping *mapping;
	struct physdma_bvec bvec;
	struct pci_dev *pdev;
	void *page = NULL;

	client = client_of(test, &ssd->dev, &no_limits);
	mapping = empty(test);
	bind_for(test);
	pdev = pages_dev;
	if (pdev)
		page = pci_alloc_p2pmem(pdev, PAGE_SIZE);
	KUNIT_EXPECT_NOT_NULL(test, page);
	if (!page) {
		pci_unregister_driver(&pages_driver);
		return;
	}
	bvec = (struct physdma_bvec){ pages(), PAGES_SIZE };

	init_completion(&errand.done);
	INIT_WORK(&errand.work, run_errand);
	errand.driver = &pages_driver;
	schedule_work(&errand.work);

	KUNIT_EXPECT_EQ(test, -ENODEV, wait_for_enodev(client, mapping, &bvec));
	KUNIT_EXPECT_FALSE(test, is_done(&errand, 200));
	provider = physdma_provider_of(bvec.phys, bvec.len);
	KUNIT_EXPECT_NOT_ERR_OR_NULL(test, provider);
	physdma_provider_put(provider);

	pci_free_p2pmem(pdev, page, PAGE_SIZE);
	KUNIT_EXPECT_TRUE(test, is_done(&errand, 5000));
	flush_work(&errand.work);
	KUNIT_EXPECT_NULL(test, physdma_provider_of(bvec.phys, bvec.len));
}

static struct kunit_case physdma_c_pages_cases[] = {
	KUNIT_CASE(pages_found),
	KUNIT_CASE(pages_refused),
	KUNIT_CASE(pages_last),
	{ }
};

static struct kunit_suite physdma_c_pages_suite = {
	.name = "physdma_c_pages",
	.suite_init = start_client,
	.suite_exit = stop_client,
	.test_cases = physdma_c_pages_cases,
};

kunit_test_suites(&physdma_c_suite, &physdma_c_pages_suite);

MODULE_AUTHOR("The physdma authors");
MODULE_DESCRIPTION("KUnit tests for physdma as C calls it");
MODULE_LICENSE("GPL");
