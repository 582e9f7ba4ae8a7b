/* SPDX-License-Identifier: GPL-2.0 */
/*
 * DMA from physical addresses, without struct page: what C calls.
 *
 * The functions are written in Rust, in rust/kernel/physdma/c_api.rs. Nothing has
 * to be initialised for them: a driver that is built in may call them too.
 *
 * A driver that lends memory of its device to others calls physdma_register()
 * and physdma_unregister(). A driver that does DMA makes its device a client
 * with physdma_client_create(), and maps any mixture of memory for it with
 * physdma_map().
 */

#ifndef _LINUX_PHYSDMA_H
#define _LINUX_PHYSDMA_H

#include <linux/dma-direction.h>
#include <linux/err.h>
#include <linux/types.h>

struct device;
struct pci_dev;
struct pci_p2pdma_map_state;
struct physdma_client;
struct physdma_provider;

/**
 * struct physdma_bvec - a piece of memory
 * @phys: physical address of the first byte
 * @len: length in bytes, not 0
 * @kind: what is known of it, see rust/kernel/physdma/bvec.rs; 0 for nothing
 *
 * Memory and nothing else, 12 bytes where phys_addr_t has 64 bits. With
 * CONFIG_PHYSDMA_BVEC_KIND 16 bytes.
 */
struct physdma_bvec {
	phys_addr_t phys;
	u32 len;
#ifdef CONFIG_PHYSDMA_BVEC_KIND
	u32 kind;
#endif
} __packed __aligned(4);

/**
 * struct physdma_range - what memory a provider is
 * @pdev: the device; there as long as there is a reference to the provider
 * @first: physical address of the first byte
 * @last: physical address of the last byte
 * @offset: where in the BAR the range starts, in bytes
 * @bar: the number of the BAR
 */
struct physdma_range {
	struct pci_dev *pdev;
	phys_addr_t first;
	phys_addr_t last;
	u64 offset;
	u8 bar;
};

/**
 * enum physdma_route_kind - how a client reaches the memory of a provider
 * @PHYSDMA_ROUTE_HOST_BRIDGE: through the root complex, mapped like RAM
 * @PHYSDMA_ROUTE_BUS: by its address on the PCI bus, below one switch
 * @PHYSDMA_ROUTE_INTERNAL: the provider is the client itself
 */
enum physdma_route_kind {
	PHYSDMA_ROUTE_HOST_BRIDGE,
	PHYSDMA_ROUTE_BUS,
	PHYSDMA_ROUTE_INTERNAL,
};

/**
 * struct physdma_route - how a client reaches the memory of a provider
 * @bus_offset: bus address less physical address, modulo 2^64; 0 for
 *	PHYSDMA_ROUTE_HOST_BRIDGE
 * @kind: by which way
 */
struct physdma_route {
	u64 bus_offset;
	enum physdma_route_kind kind;
};

/**
 * struct physdma_limits - what a device can take
 * @boundary_mask: a segment does not cross an address that has all the bits of
 *	this mask clear, as with seg_boundary_mask in struct queue_limits; all
 *	ones: no boundary
 * @max_segment_bytes: the most bytes of a segment, not 0
 * @max_segments: the most segments of one physdma_map(), not 0
 */
struct physdma_limits {
	u64 boundary_mask;
	u32 max_segment_bytes;
	u16 max_segments;
};

/**
 * enum physdma_origin - what a segment is to the device
 * @PHYSDMA_ORIGIN_MAPPED: the DMA API gave it an address: RAM, or memory of a
 *	provider behind the host bridge
 * @PHYSDMA_ORIGIN_BUS: memory of a provider, by its address on the PCI bus
 * @PHYSDMA_ORIGIN_INTERNAL: memory of the device itself
 */
enum physdma_origin {
	PHYSDMA_ORIGIN_MAPPED,
	PHYSDMA_ORIGIN_BUS,
	PHYSDMA_ORIGIN_INTERNAL,
};

/**
 * struct physdma_segment - a part of a request, as the device is told of it
 * @dma: where the device finds it
 * @bar_offset: where it is in the device's own BAR, in bytes; 0 unless
 *	PHYSDMA_ORIGIN_INTERNAL
 * @len: its length in bytes
 * @origin: what it is
 * @bar: the number of that BAR; 0 unless PHYSDMA_ORIGIN_INTERNAL
 */
struct physdma_segment {
	dma_addr_t dma;
	u64 bar_offset;
	u32 len;
	enum physdma_origin origin;
	u8 bar;
};

/**
 * typedef physdma_segment_fn - takes the next segment
 * @segment: the segment, there until the function returns
 * @data: what physdma_map() was given
 *
 * Called in the context of physdma_map(), which may be atomic.
 *
 * Return: 0, or a negative errno, which ends physdma_map().
 */
typedef int (*physdma_segment_fn)(const struct physdma_segment *segment,
				  void *data);

/**
 * struct physdma_mapping - what has been mapped, and how it is undone
 *
 * Lives in the private data of a request. All zeroes: nothing is mapped. Must
 * not be copied while something is mapped.
 */
struct physdma_mapping {
	/* private: */
	u64 opaque[8];
};

/**
 * enum physdma_miss - what memory is that no provider has registered
 * @PHYSDMA_MISS_REFUSE: unknown; it is not mapped
 * @PHYSDMA_MISS_RAM: RAM; who says so knows it, such as from its struct page
 */
enum physdma_miss {
	PHYSDMA_MISS_REFUSE,
	PHYSDMA_MISS_RAM,
};

#ifdef CONFIG_PHYSDMA
/**
 * physdma_register - open memory of a PCI device to the DMA of other devices
 * @pdev: the device, with a driver bound to it
 * @bar: the number of the BAR, one of memory
 * @offset: where in the BAR the memory starts, in bytes
 * @size: its length in bytes
 *
 * What it costs does not depend on @size: there is no struct page. The driver
 * must give the result to physdma_unregister() before it is unbound.
 *
 * Context: May sleep.
 * Return: A reference to the provider, or an ERR_PTR():
 *	-EINVAL: @pdev is NULL; the BAR is not one of memory; the range is
 *	empty, not within the BAR, or overlaps System RAM
 *	-EBUSY: it overlaps a range that is registered
 *	-EOPNOTSUPP: the device's BARs cannot be mapped, or CONFIG_PHYSDMA=n
 *	-EOVERFLOW: the addresses do not fit an unsigned long
 *	-ENOMEM
 */
struct physdma_provider *physdma_register(struct pci_dev *pdev, int bar,
					  u64 offset, u64 size);

/**
 * physdma_register_pages - enter memory of a PCI device that has pages
 * @pdev: the device, with a driver bound to it
 * @bar: the number of the BAR, one of memory
 * @offset: where in the BAR the memory starts, in bytes
 * @size: its length in bytes
 *
 * For whoever makes a struct page for each page of it, and hands it out.
 * Otherwise like physdma_register(). The entry must be there before the pages
 * are, and as long.
 *
 * Context: May sleep.
 * Return: As with physdma_register(), but NULL with CONFIG_PHYSDMA=n.
 */
struct physdma_provider *physdma_register_pages(struct pci_dev *pdev, int bar,
						u64 offset, u64 size);

/**
 * physdma_revoke - map a provider's memory no more
 * @provider: what was registered, or NULL
 *
 * The first steps of physdma_unregister(), for whoever has to do something
 * else before the others: from here on physdma_map() of this memory fails with
 * -ENODEV, and whoever wants to be told has been. What is mapped stays mapped,
 * look-ups still find the provider, and the range cannot be registered again.
 * May be called more than once.
 *
 * Context: May sleep.
 */
void physdma_revoke(struct physdma_provider *provider);

/**
 * physdma_unregister - take memory away from all other devices
 * @provider: what was registered, or NULL; the reference is given back
 *
 * Tells whoever wants to be told, and waits until all that is mapped has been
 * unmapped. Whom it waits for long it names in the log. When it returns no
 * device has an address of the memory.
 *
 * Context: May sleep. No lock must be held that a client needs to recover
 * from an error.
 */
void physdma_unregister(struct physdma_provider *provider);

/**
 * physdma_provider_of - find out whose memory a physical address is
 * @phys: the physical address of the first byte
 * @len: how many bytes
 *
 * Context: Any.
 * Return: A reference to the provider to which all of it belongs, for
 *	physdma_provider_put(); NULL if it is no provider's memory; or an
 *	ERR_PTR():
 *	-EFAULT: a part of it only is a provider's
 *	-EINVAL: @len is 0, or the memory wraps around the end of the addresses
 */
struct physdma_provider *physdma_provider_of(phys_addr_t phys, u32 len);

/**
 * physdma_provider_get - take one more reference to a provider
 * @provider: the provider, or NULL
 *
 * A reference keeps the object, and struct pci_dev, but not the memory: what
 * is mapped does.
 *
 * Context: Any.
 * Return: @provider.
 */
struct physdma_provider *
physdma_provider_get(struct physdma_provider *provider);

/**
 * physdma_provider_put - give a reference to a provider back
 * @provider: the provider, or NULL
 *
 * Not for what physdma_register() returned: that is for physdma_unregister().
 *
 * Context: May sleep.
 */
void physdma_provider_put(struct physdma_provider *provider);

/**
 * physdma_provider_range - what memory a provider is
 * @provider: the provider
 * @range: is filled in
 *
 * Context: Any.
 */
void physdma_provider_range(const struct physdma_provider *provider,
			    struct physdma_range *range);

/**
 * physdma_client_create - have a device map memory of all kinds
 * @dev: the device, with a driver bound to it and its DMA mask set
 * @limits: what it can take
 *
 * Its route to every provider is found out here, and when one appears later,
 * then. The driver must destroy the client before it is unbound.
 *
 * Context: May sleep.
 * Return: The client, or an ERR_PTR():
 *	-EINVAL: @dev or @limits is NULL, or no segment is within the limits
 *	-EIO: the device cannot do DMA
 *	-EOPNOTSUPP: CONFIG_PHYSDMA=n
 *	-ENOMEM
 */
struct physdma_client *
physdma_client_create(struct device *dev, const struct physdma_limits *limits);

/**
 * physdma_client_destroy - the device maps nothing more
 * @client: the client, or NULL; all that it mapped has been unmapped
 *
 * Context: May sleep.
 */
void physdma_client_destroy(struct physdma_client *client);

/**
 * physdma_route - how a client reaches the memory of a provider
 * @client: the client
 * @provider: the provider
 * @route: is filled in if there is one
 * @why: if there is none: why, for a person to read, a string of at most
 *	@size bytes with its end; empty otherwise. May be NULL.
 * @size: the size of @why in bytes
 *
 * Context: May sleep.
 * Return: 0, or a negative errno:
 *	-EINVAL: there is no route; or an argument is NULL, with @why empty
 *	-ENODEV: the memory is being revoked, or was
 *	-EOPNOTSUPP: CONFIG_PHYSDMA=n
 */
int physdma_route(struct physdma_client *client,
		  struct physdma_provider *provider,
		  struct physdma_route *route, char *why, size_t size);

/**
 * physdma_map - make memory visible to a device, whatever it is made of
 * @client: the device
 * @mapping: keeps what is to be undone
 * @bvecs: the pieces of memory, in order
 * @nr: how many they are
 * @dir: what the device does with it; not DMA_NONE
 * @miss: what a piece is that no provider has registered
 * @fn: is called for each segment, in order, to tell the device
 * @data: what to pass to @fn
 *
 * RAM must stay allocated until it is unmapped; memory of a provider is kept.
 *
 * Context: Any but non-maskable interrupts.
 * Return: How many segments there were; or a negative errno, with nothing
 *	mapped:
 *	-EINVAL: an argument is none that is allowed; a piece is empty, or
 *	wraps; there are more segments than the client can take, or more bytes
 *	than can be mapped at once; or there is no route to a provider, for the
 *	reason that physdma_route() gives and the log has
 *	-EFAULT: @miss says refuse, and no provider has registered a piece, or one
 *	that hands it out by its pages
 *	-ENODEV: the memory is being revoked
 *	-EBUSY: @mapping has something mapped still
 *	-EPERM: memory of a provider would have to be bounced
 *	-ENOMEM: try again when other requests have completed
 *	-EOPNOTSUPP: CONFIG_PHYSDMA=n
 *	what @fn returned
 */
int physdma_map(struct physdma_client *client, struct physdma_mapping *mapping,
		const struct physdma_bvec *bvecs, unsigned int nr,
		enum dma_data_direction dir, enum physdma_miss miss,
		physdma_segment_fn fn, void *data);

/**
 * physdma_unmap - take memory away from a device
 * @mapping: what was mapped, or nothing
 *
 * The device must have stopped using it.
 *
 * Context: Any but non-maskable interrupts.
 */
void physdma_unmap(struct physdma_mapping *mapping);

/**
 * physdma_live_get - keep memory of a provider from being revoked
 * @phys: a physical address
 * @first: is set to the physical address of the provider's first byte
 * @last: is set to that of its last byte
 *
 * For the block layer, whose drivers map without a struct physdma_mapping.
 * Revocation waits until physdma_live_put() is called, once, with the same
 * address.
 *
 * Context: Any but non-maskable interrupts.
 * Return: 0, or a negative errno:
 *	-EFAULT: @phys is no provider's, or one's that hands its memory out by its
 *	pages
 *	-ENODEV: the memory is being revoked
 *	-EOPNOTSUPP: CONFIG_PHYSDMA=n
 */
int physdma_live_get(phys_addr_t phys, phys_addr_t *first, phys_addr_t *last);

/**
 * physdma_live_put - let memory of a provider go
 * @phys: the address for which physdma_live_get() returned 0
 *
 * Context: Any but non-maskable interrupts.
 */
void physdma_live_put(phys_addr_t phys);

/**
 * physdma_map_state - how a client is to map memory of a provider
 * @client: the client, or NULL
 * @phys: an address for which there is a physdma_live_get()
 * @state: is filled in, as by pci_p2pdma_state()
 *
 * Context: Any but non-maskable interrupts.
 * Return: 0, or a negative errno:
 *	-EINVAL: @client or @state is NULL; or there is no route, for the reason
 *	that physdma_route() gives and the log has
 *	-EFAULT: @phys is no provider's
 *	-ENODEV: the client came when the memory was being revoked
 *	-EOPNOTSUPP: CONFIG_PHYSDMA=n
 */
int physdma_map_state(struct physdma_client *client, phys_addr_t phys,
		      struct pci_p2pdma_map_state *state);
#else /* CONFIG_PHYSDMA */
static inline struct physdma_provider *
physdma_register(struct pci_dev *pdev, int bar, u64 offset, u64 size)
{
	return ERR_PTR(-EOPNOTSUPP);
}

/* Nobody looks anything up, and memory with pages does not depend on it. */
static inline struct physdma_provider *
physdma_register_pages(struct pci_dev *pdev, int bar, u64 offset, u64 size)
{
	return NULL;
}

static inline void physdma_revoke(struct physdma_provider *provider)
{
}

static inline void physdma_unregister(struct physdma_provider *provider)
{
}

static inline struct physdma_provider *
physdma_provider_of(phys_addr_t phys, u32 len)
{
	return NULL;
}

static inline struct physdma_provider *
physdma_provider_get(struct physdma_provider *provider)
{
	return provider;
}

static inline void physdma_provider_put(struct physdma_provider *provider)
{
}

static inline void
physdma_provider_range(const struct physdma_provider *provider,
		       struct physdma_range *range)
{
}

static inline struct physdma_client *
physdma_client_create(struct device *dev, const struct physdma_limits *limits)
{
	return ERR_PTR(-EOPNOTSUPP);
}

static inline void physdma_client_destroy(struct physdma_client *client)
{
}

static inline int physdma_route(struct physdma_client *client,
				struct physdma_provider *provider,
				struct physdma_route *route, char *why,
				size_t size)
{
	return -EOPNOTSUPP;
}

static inline int
physdma_map(struct physdma_client *client, struct physdma_mapping *mapping,
	    const struct physdma_bvec *bvecs, unsigned int nr,
	    enum dma_data_direction dir, enum physdma_miss miss,
	    physdma_segment_fn fn, void *data)
{
	return -EOPNOTSUPP;
}

static inline void physdma_unmap(struct physdma_mapping *mapping)
{
}

static inline int physdma_live_get(phys_addr_t phys, phys_addr_t *first,
				   phys_addr_t *last)
{
	return -EOPNOTSUPP;
}

static inline void physdma_live_put(phys_addr_t phys)
{
}

static inline int physdma_map_state(struct physdma_client *client,
				    phys_addr_t phys,
				    struct pci_p2pdma_map_state *state)
{
	return -EOPNOTSUPP;
}
#endif /* CONFIG_PHYSDMA */

#endif /* _LINUX_PHYSDMA_H */
