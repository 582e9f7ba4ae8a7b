// SPDX-License-Identifier: GPL-2.0

#include <linux/cc_platform.h>
#include <linux/dma-direct.h>
#include <linux/dma-map-ops.h>
#include <linux/genalloc.h>
#include <linux/highmem.h>
#include <linux/io.h>
#include <linux/iommu.h>
#include <linux/iommu-dma.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/sched/task_stack.h>
#include <linux/swiotlb.h>

__rust_helper int rust_helper_dma_mapping_error(struct device *dev,
						dma_addr_t dma_addr)
{
	return dma_mapping_error(dev, dma_addr);
}

__rust_helper bool rust_helper_dev_is_dma_coherent(struct device *dev)
{
	return dev_is_dma_coherent(dev);
}

__rust_helper bool rust_helper_use_dma_iommu(struct device *dev)
{
	return use_dma_iommu(dev);
}

__rust_helper bool rust_helper_is_swiotlb_force_bounce(struct device *dev)
{
	return is_swiotlb_force_bounce(dev);
}

__rust_helper u64 rust_helper_dma_get_mask(struct device *dev)
{
	return dma_get_mask(dev);
}

/*
 * Whether dma_direct_map_phys() lets @dev reach MMIO at @phys: @dma is the
 * address that it would have to send, @last the last one that it can.
 */
__rust_helper bool rust_helper_physdma_reaches_mmio(struct device *dev,
						    phys_addr_t phys, u64 *dma,
						    u64 *last)
{
	unsigned long attrs = DMA_ATTR_MMIO;

	if (cc_platform_has(CC_ATTR_HOST_MEM_ENCRYPT)) {
		attrs |= DMA_ATTR_CC_SHARED;
		*dma = phys_to_dma_unencrypted(dev, phys);
	} else {
		*dma = phys_to_dma_encrypted(dev, phys);
	}
	*last = min_not_zero(dma_get_mask(dev), dev->bus_dma_limit);
	return dma_capable(dev, *dma, 1, false, attrs);
}

/*
 * What @dev unmapped the IOMMU has forgotten after this, in lazy mode too. A
 * driver is bound to @dev, or its resources are being released. Sleeps.
 */
__rust_helper void rust_helper_physdma_flush_iotlb(struct device *dev)
{
	struct iommu_domain *domain;

	/* When resources are released the domain may go already: it is kept. */
	if (iommu_device_use_default_domain(dev))
		return;
	domain = iommu_get_domain_for_dev(dev);
	if (domain && use_dma_iommu(dev))
		iommu_flush_iotlb_all(domain);
	iommu_device_unuse_default_domain(dev);
}

__rust_helper unsigned long rust_helper_gen_pool_alloc(struct gen_pool *pool,
						       size_t size)
{
	return gen_pool_alloc(pool, size);
}

__rust_helper void rust_helper_gen_pool_free(struct gen_pool *pool,
					     unsigned long addr, size_t size)
{
	gen_pool_free(pool, addr, size);
}

/* Numbers that each CPU counts for itself. */
__rust_helper u64 *rust_helper_physdma_counter_alloc(void)
{
	return (u64 __force *)alloc_percpu(u64);
}

__rust_helper void rust_helper_physdma_counter_free(u64 *counter)
{
	free_percpu((void __percpu __force *)counter);
}

__rust_helper void rust_helper_physdma_counter_inc(u64 *counter)
{
	this_cpu_inc(*(u64 __percpu __force *)counter);
}

__rust_helper u64 rust_helper_physdma_counter_sum(u64 *counter)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(*per_cpu_ptr((u64 __percpu __force *)counter,
					      cpu));
	return sum;
}

/* A macro on some architectures. */
__rust_helper void rust_helper_physdma_memset_io(void __iomem *to, int value,
						 size_t len)
{
	memset_io(to, value, len);
}

/* The page of @phys, which must have one. */
__rust_helper struct page *rust_helper_physdma_page_of(phys_addr_t phys)
{
	return pfn_to_page(PHYS_PFN(phys));
}

/*
 * Maps the page of @phys, if there is one that the CPU can use as RAM; the
 * address of @phys itself.
 */
__rust_helper void *rust_helper_physdma_kmap(phys_addr_t phys)
{
	struct page *page;

	if (!pfn_valid(PHYS_PFN(phys)))
		return NULL;
	page = pfn_to_page(PHYS_PFN(phys));
	if (is_device_private_page(page) || is_pci_p2pdma_page(page))
		return NULL;
	return kmap_local_page(page) + offset_in_page(phys);
}

/* Whether DMA can be done to @addr. May sleep: it looks at the resource tree. */
__rust_helper bool rust_helper_physdma_virt_is_ram(const void *addr)
{
	if (object_is_on_stack(addr))
		return false;
	if (is_vmalloc_or_module_addr(addr)) {
		unsigned long pfn = vmalloc_to_pfn(addr);

		/* An ioremap() lies here too. */
		return pfn_valid(pfn) && page_is_ram(pfn);
	}
	return virt_addr_valid(addr);
}

/* The physical address of @addr, of which physdma_virt_is_ram() is true. */
__rust_helper phys_addr_t rust_helper_physdma_virt_to_phys(const void *addr)
{
	if (is_vmalloc_or_module_addr(addr))
		return PFN_PHYS(vmalloc_to_pfn(addr)) + offset_in_page(addr);
	return virt_to_phys((void *)addr);
}

#ifdef CONFIG_MMU
__rust_helper pgprot_t rust_helper_physdma_pgprot_noncached(pgprot_t prot)
{
	return pgprot_decrypted(pgprot_noncached(prot));
}
#endif

/*
 * Without an IOMMU, or without anything that has to be unmapped, these are
 * inline functions of the header.
 */
#ifndef CONFIG_IOMMU_DMA
__rust_helper bool rust_helper_dma_iova_try_alloc(struct device *dev,
						  struct dma_iova_state *state,
						  phys_addr_t phys, size_t size)
{
	return dma_iova_try_alloc(dev, state, phys, size);
}

__rust_helper void rust_helper_dma_iova_destroy(struct device *dev,
						struct dma_iova_state *state,
						size_t mapped_len,
						enum dma_data_direction dir,
						unsigned long attrs)
{
	dma_iova_destroy(dev, state, mapped_len, dir, attrs);
}

__rust_helper int rust_helper_dma_iova_sync(struct device *dev,
					    struct dma_iova_state *state,
					    size_t offset, size_t size)
{
	return dma_iova_sync(dev, state, offset, size);
}

__rust_helper int rust_helper_dma_iova_link(struct device *dev,
					    struct dma_iova_state *state,
					    phys_addr_t phys, size_t offset,
					    size_t size,
					    enum dma_data_direction dir,
					    unsigned long attrs)
{
	return dma_iova_link(dev, state, phys, offset, size, dir, attrs);
}

__rust_helper int rust_helper_dma_iova_link_vec(struct device *dev,
						struct dma_iova_state *state,
						const struct phys_vec *vec,
						unsigned int nr, size_t offset,
						enum dma_data_direction dir,
						unsigned long attrs)
{
	return dma_iova_link_vec(dev, state, vec, nr, offset, dir, attrs);
}
#endif

#ifndef CONFIG_DMA_NEED_SYNC
__rust_helper bool rust_helper_dma_need_unmap(struct device *dev)
{
	return dma_need_unmap(dev);
}
#endif
