// SPDX-License-Identifier: GPL-2.0

//! DMA from physical addresses, without `struct page`.
