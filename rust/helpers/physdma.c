// SPDX-License-Identifier: GPL-2.0

#include <linux/dma-mapping.h>
#include <linux/mm.h>

__rust_helper int rust_helper_dma_mapping_error(struct device *dev,
						dma_addr_t dma_addr)
{
	return dma_mapping_error(dev, dma_addr);
}

__rust_helper phys_addr_t rust_helper_page_to_phys(struct page *page)
{
	return page_to_phys(page);
}

/* The physical address of @addr, false where there is none that is RAM. */
__rust_helper bool rust_helper_physdma_virt_to_phys(const void *addr,
						    phys_addr_t *phys)
{
	if (is_vmalloc_or_module_addr(addr)) {
		unsigned long pfn = vmalloc_to_pfn(addr);

		/* An ioremap() lies here too. */
		if (!pfn_valid(pfn) || !page_is_ram(pfn))
			return false;
		*phys = PFN_PHYS(pfn) + offset_in_page(addr);
		return true;
	}
	if (!virt_addr_valid(addr))
		return false;
	*phys = virt_to_phys((void *)addr);
	return true;
}
