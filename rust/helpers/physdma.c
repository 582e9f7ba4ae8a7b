// SPDX-License-Identifier: GPL-2.0

#include <linux/dma-mapping.h>
#include <linux/mm.h>
#include <linux/sched/task_stack.h>

__rust_helper int rust_helper_dma_mapping_error(struct device *dev,
						dma_addr_t dma_addr)
{
	return dma_mapping_error(dev, dma_addr);
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
#endif

#ifndef CONFIG_DMA_NEED_SYNC
__rust_helper bool rust_helper_dma_need_unmap(struct device *dev)
{
	return dma_need_unmap(dev);
}
#endif
