/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What kernel::physdma does: rust/kernel/physdma/trace.rs says when each of these
 * happens. Addresses of mappings tell which unmap belongs to which map.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM physdma

#if !defined(_TRACE_PHYSDMA_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_PHYSDMA_H

#include <linux/device.h>
#include <linux/dma-direction.h>
#include <linux/tracepoint.h>

/* How a request is mapped. */
#ifndef _TRACE_PHYSDMA_ENUMS
#define _TRACE_PHYSDMA_ENUMS
enum physdma_path {
	PHYSDMA_PATH_SINGLE,
	PHYSDMA_PATH_IOVA,
	PHYSDMA_PATH_DIRECT,
	PHYSDMA_PATH_BUS,
	PHYSDMA_PATH_INTERNAL,
	PHYSDMA_PATH_MIXED,
};
#endif

/* The fields have C's own types, which tools know without a kernel's BTF. */

TRACE_DEFINE_ENUM(DMA_BIDIRECTIONAL);
TRACE_DEFINE_ENUM(DMA_TO_DEVICE);
TRACE_DEFINE_ENUM(DMA_FROM_DEVICE);

TRACE_DEFINE_ENUM(PHYSDMA_PATH_SINGLE);
TRACE_DEFINE_ENUM(PHYSDMA_PATH_IOVA);
TRACE_DEFINE_ENUM(PHYSDMA_PATH_DIRECT);
TRACE_DEFINE_ENUM(PHYSDMA_PATH_BUS);
TRACE_DEFINE_ENUM(PHYSDMA_PATH_INTERNAL);
TRACE_DEFINE_ENUM(PHYSDMA_PATH_MIXED);

#define show_physdma_dir(dir)						\
	__print_symbolic(dir,						\
			 { DMA_BIDIRECTIONAL, "both" },			\
			 { DMA_TO_DEVICE, "to" },			\
			 { DMA_FROM_DEVICE, "from" })

#define show_physdma_path(path)						\
	__print_symbolic(path,						\
			 { PHYSDMA_PATH_SINGLE, "single" },		\
			 { PHYSDMA_PATH_IOVA, "iova" },			\
			 { PHYSDMA_PATH_DIRECT, "direct" },		\
			 { PHYSDMA_PATH_BUS, "bus" },			\
			 { PHYSDMA_PATH_INTERNAL, "internal" },		\
			 { PHYSDMA_PATH_MIXED, "mixed" })

TRACE_EVENT(physdma_map,
	TP_PROTO(struct device *dev, void *mapping, u64 bytes, u32 dir, u32 path),
	TP_ARGS(dev, mapping, bytes, dir, path),
	TP_STRUCT__entry(
		__string(client, dev_name(dev))
		__field(void *, mapping)
		__field(unsigned long long, bytes)
		__field(unsigned int, dir)
		__field(unsigned int, path)
	),
	TP_fast_assign(
		__assign_str(client);
		__entry->mapping = mapping;
		__entry->bytes = bytes;
		__entry->dir = dir;
		__entry->path = path;
	),
	TP_printk("client=%s mapping=%p bytes=%llu dir=%s path=%s",
		  __get_str(client), __entry->mapping, __entry->bytes,
		  show_physdma_dir(__entry->dir),
		  show_physdma_path(__entry->path))
);

TRACE_EVENT(physdma_unmap,
	TP_PROTO(void *mapping),
	TP_ARGS(mapping),
	TP_STRUCT__entry(
		__field(void *, mapping)
	),
	TP_fast_assign(
		__entry->mapping = mapping;
	),
	TP_printk("mapping=%p", __entry->mapping)
);

TRACE_EVENT(physdma_refuse,
	TP_PROTO(struct device *client, struct device *provider, const char *reason),
	TP_ARGS(client, provider, reason),
	TP_STRUCT__entry(
		__string(client, client ? dev_name(client) : "-")
		__string(provider, dev_name(provider))
		__string(reason, reason)
	),
	TP_fast_assign(
		__assign_str(client);
		__assign_str(provider);
		__assign_str(reason);
	),
	/* Quotes around the reason would end the format for perf. */
	TP_printk("client=%s provider=%s reason=%s",
		  __get_str(client), __get_str(provider), __get_str(reason))
);

DECLARE_EVENT_CLASS(physdma_range,
	TP_PROTO(struct device *dev, u32 bar, u64 first, u64 last, bool pages),
	TP_ARGS(dev, bar, first, last, pages),
	TP_STRUCT__entry(
		__string(provider, dev_name(dev))
		__field(unsigned int, bar)
		__field(unsigned long long, first)
		__field(unsigned long long, last)
		__field(unsigned char, pages)
	),
	TP_fast_assign(
		__assign_str(provider);
		__entry->bar = bar;
		__entry->first = first;
		__entry->last = last;
		__entry->pages = pages;
	),
	TP_printk("provider=%s bar=%u first=%#llx last=%#llx pages=%s",
		  __get_str(provider), __entry->bar, __entry->first,
		  __entry->last, __entry->pages ? "yes" : "no")
);

#define DEFINE_PHYSDMA_RANGE_EVENT(name)					\
DEFINE_EVENT(physdma_range, name,					\
	TP_PROTO(struct device *dev, u32 bar, u64 first, u64 last, bool pages),	\
	TP_ARGS(dev, bar, first, last, pages))

/* Memory is open to other devices; its revocation begins, and has ended. */
DEFINE_PHYSDMA_RANGE_EVENT(physdma_register);
DEFINE_PHYSDMA_RANGE_EVENT(physdma_revoke);
DEFINE_PHYSDMA_RANGE_EVENT(physdma_revoked);

#endif /* _TRACE_PHYSDMA_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
