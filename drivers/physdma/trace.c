// SPDX-License-Identifier: GPL-2.0
/*
 * The tracepoints of kernel::physdma. They are looked at where drivers map, which
 * can be modules.
 */

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/physdma.h>

EXPORT_TRACEPOINT_SYMBOL_GPL(physdma_map);
EXPORT_TRACEPOINT_SYMBOL_GPL(physdma_unmap);
