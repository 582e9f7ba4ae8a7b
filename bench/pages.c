// SPDX-License-Identifier: GPL-2.0
/*
 * Opens all memory of QEMU's ivshmem to other devices by the C stack's means,
 * with a struct page for each of its pages: what to measure physdma_ivshmem
 * by, which does the same without.
 */
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/pci-p2pdma.h>

#define MEMORY_BAR	2

static int pages_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	int ret;

	ret = pcim_enable_device(pdev);
	if (ret)
		return ret;
	ret = pci_p2pdma_add_resource(pdev, MEMORY_BAR, 0, 0);
	if (ret)
		return dev_err_probe(&pdev->dev, ret, "no pages for its memory\n");
	pci_p2pmem_publish(pdev, true);
	return 0;
}

/* No alias: nothing loads this by itself, the memory is physdma_ivshmem's. */
static const struct pci_device_id pages_ids[] = {
	{ PCI_DEVICE(PCI_VENDOR_ID_REDHAT_QUMRANET, 0x1110) },
	{ }
};

static struct pci_driver pages_driver = {
	.name		= KBUILD_MODNAME,
	.id_table	= pages_ids,
	.probe		= pages_probe,
};
module_pci_driver(pages_driver);

MODULE_DESCRIPTION("Opens the memory of QEMU's ivshmem, with pages");
MODULE_LICENSE("GPL");
