/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * I/O between an NVMe disk and memory that has been registered: of the program,
 * or of a PCI device, which need not have a struct page.
 *
 * Each controller of the driver rnvme has a file, /dev/rnvme0 and so on; its
 * disks are /dev/rnvme0n1 and so on, of which the last number is the namespace.
 * A program opens the file, registers buffers by ioctl(), and has data moved
 * between a buffer and blocks of a disk, by ioctl() or by io_uring.
 *
 * WHO MAY
 *
 * What can be done here could be done by reading and writing the disk, and by
 * reading and writing the resource file of the PCI device in sysfs. So it takes
 * the same rights:
 *
 * - The file is the user root's unless the system says otherwise, and whoever
 *   opens it needs CAP_SYS_RAWIO.
 * - Each ioctl and each command of io_uring takes CAP_SYS_RAWIO too, of who
 *   does it: an open file that has come to an unprivileged process is of no
 *   use to it. With io_uring that is the process that has submitted the
 *   command, or whose rights io_uring has been told to use (a personality, or
 *   the creator of a ring with a thread of its own).
 * - Reading a disk takes a file that is open for reading, writing to one a
 *   file that is open for writing, and a namespace that is not read-only. That
 *   a disk is mounted, or that a process has it for itself, keeps nobody from
 *   writing to it here, as with the NVMe commands of the driver nvme.
 * - To register memory of a PCI device takes a kernel that lets programs
 *   access PCI devices: see kernel_lockdown(7).
 * - Memory of the program counts as locked, see RLIMIT_MEMLOCK, until it is
 *   unregistered and no I/O uses it any more.
 *
 * WHAT STAYS
 *
 * A buffer is known by a number in the open file that it was registered in, and
 * in no other. It is there until it is unregistered, the file is closed, or the
 * controller goes; I/O that is under way then is finished first. Memory of a PCI
 * device is not kept by a buffer: when the device goes, or its driver, I/O to
 * the buffer fails, then and ever after, though the same device may come back.
 * Nothing but I/O that is under way is waited for then.
 *
 * When the controller goes, the open file stays, but whatever is done with it
 * fails with ENODEV.
 *
 * ERRORS
 *
 * All of this may fail with
 *
 * ENODEV	the controller has gone
 * EPERM	the caller has no CAP_SYS_RAWIO
 * EFAULT	the structure is not in memory of the program
 * EINVAL	a reserved field or one of flags is not zero
 * ENOMEM	there is not enough memory
 * ENOTTY	there is no such ioctl
 *
 * and otherwise as is said below. All numbers are in the machine's byte order.
 * Structures have the same layout for programs of 32 and of 64 bits.
 */
#ifndef _UAPI_LINUX_RNVME_H
#define _UAPI_LINUX_RNVME_H

#include <linux/ioctl.h>
#include <linux/types.h>

/*
 * struct rnvme_buf.kind: memory of a PCI device that its driver has opened to
 * other devices: a provider.
 */
#define RNVME_BUF_PROVIDER	1
/* struct rnvme_buf.kind: memory of the program, which is pinned. */
#define RNVME_BUF_USER		2

/* The most buffers of an open file. */
#define RNVME_MAX_BUFS		1024
/* The most bytes of a buffer that is memory of the program. */
#define RNVME_MAX_USER_BYTES	(1 << 30)
/* The most bytes of one struct rnvme_io. */
#define RNVME_MAX_IO_BYTES	(16 << 20)

/**
 * struct rnvme_buf - a buffer to be registered
 * @kind: RNVME_BUF_PROVIDER or RNVME_BUF_USER
 * @flags: zero
 * @domain: of the provider: its PCI domain, the first number of its address;
 *	as @bus, @devfn and @bar zero for memory of the program
 * @bus: the second number
 * @devfn: the last two: device * 8 + function
 * @bar: the number of the BAR, as in the name of its resource file
 * @reserved1: zero
 * @offset: in the BAR, in bytes; or the address in the program
 * @length: in bytes, at least 1
 * @id: zero; on return the number of the buffer
 * @reserved2: zero
 * @reserved3: zero
 *
 * A range of memory need not be a whole number of pages.
 *
 * Return: 0, or
 *
 * EINVAL	there is no such kind, @length is 0, or more than
 *		RNVME_MAX_USER_BYTES of memory of the program; the range wraps
 * ENXIO	no driver has opened all of that range of that BAR; or it has, but
 *		hands out the memory by its pages, as the C driver nvme does
 * ENODEV	the provider is going away
 * EHOSTUNREACH	the controller has no way to that memory. The log says why, the
 *		first time; so does /sys/kernel/debug/physdma/routes, if it is there
 * EPERM	the kernel is locked down
 * EFAULT	not all of the program's memory is there and can be written, or
 *		it is nothing that other devices can reach
 * EOPNOTSUPP	memory of programs would have to be copied on its way, or caches
 *		be looked after; the log has which
 * ENOMEM	RLIMIT_MEMLOCK; or there is no room left in the IOMMU
 * ENOSPC	there are RNVME_MAX_BUFS buffers already
 */
struct rnvme_buf {
	__u32	kind;
	__u32	flags;
	__u32	domain;
	__u8	bus;
	__u8	devfn;
	__u8	bar;
	__u8	reserved1;
	__u64	offset;
	__u64	length;
	__u32	id;
	__u32	reserved2;
	__u64	reserved3[2];
};

/**
 * struct rnvme_buf_id - a buffer that is not needed any more
 * @id: its number
 * @reserved: zero
 *
 * I/O that is under way is finished. Where it uses memory of the program it is
 * waited for, but not longer than a second.
 *
 * Return: 0, or
 *
 * ENOENT	there is no such buffer in this open file
 */
struct rnvme_buf_id {
	__u32	id;
	__u32	reserved;
};

/* struct rnvme_io.op: from the disk into the buffer. */
#define RNVME_OP_READ	1
/* struct rnvme_io.op: from the buffer to the disk. */
#define RNVME_OP_WRITE	2

/**
 * struct rnvme_io - data to be moved
 * @id: the buffer
 * @nsid: the namespace, at least 1
 * @offset: in the buffer, in bytes
 * @lba: the first block; a block is what the disk says, 512 or 4096 bytes
 * @length: in bytes, whole blocks, at least one, at most RNVME_MAX_IO_BYTES
 * @op: RNVME_OP_READ or RNVME_OP_WRITE
 * @flags: zero
 * @reserved: zero
 *
 * The memory has to start at a multiple of 4 bytes. What is longer than a
 * command of the controller may be is done in several. Blocks that were written
 * may be in the disk's cache still: flush it with fsync() of the disk.
 *
 * Return: 0 when all is done, or, and then some of it may be done,
 *
 * EINVAL	there is no such @op; @length is not as above; the memory does
 *		not start as above, or cannot be mapped for the controller
 * ENOENT	there is no such buffer in this open file
 * ENXIO	there is no such namespace
 * EBADF	the file is not open for that
 * EROFS	the namespace is read-only
 * ERANGE	that is not within the buffer
 * ENOSPC	that is not within the disk
 * ENODEV	the provider has gone
 * ENODATA, EIO, EREMOTEIO, ETIMEDOUT, EAGAIN and others
 *		what the disk says, as with read() and write()
 */
struct rnvme_io {
	__u32	id;
	__u32	nsid;
	__u64	offset;
	__u64	lba;
	__u32	length;
	__u16	op;
	__u16	flags;
	__u64	reserved[2];
};

#define RNVME_IOC_BUF_REGISTER		_IOWR('N', 0xa0, struct rnvme_buf)
#define RNVME_IOC_BUF_UNREGISTER	_IOW('N', 0xa1, struct rnvme_buf_id)
/* Returns when the data were moved. A signal does not end that. */
#define RNVME_IOC_IO			_IOW('N', 0xa2, struct rnvme_io)

/*
 * By io_uring: IORING_OP_URING_CMD with this as cmd_op, and a struct rnvme_io as
 * the command. That does not fit into an entry of the normal size: the ring has
 * to have IORING_SETUP_SQE128, or the entry be an IORING_OP_URING_CMD128.
 * Otherwise the completion says EOPNOTSUPP, and so for any other cmd_op.
 *
 * The completion has what the ioctl would return. Commands are under way at the
 * same time, and end in any order. One that is not longer than a command of the
 * controller, see max_hw_sectors_kb of the disk's queue, costs no thread of the
 * kernel's unless that queue is full or held.
 *
 * A command is not cancelled: closing the ring waits for it, as for any read.
 */
#define RNVME_URING_CMD_IO		RNVME_IOC_IO

#endif /* _UAPI_LINUX_RNVME_H */
