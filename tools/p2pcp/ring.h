/* SPDX-License-Identifier: GPL-2.0 */
/* A ring of io_uring for commands of rnvme, without a library. */
#ifndef P2PCP_RING_H
#define P2PCP_RING_H

#include <linux/io_uring.h>
#include <linux/rnvme.h>

struct ring {
	int fd;
	unsigned int entries;
	unsigned int *sq_tail, *sq_mask, *sq_array;
	unsigned int *cq_head, *cq_tail, *cq_mask;
	unsigned char *sqes;
	unsigned int sqe_bytes;
	struct io_uring_cqe *cqes;
	/* Put into the ring, but not submitted. */
	unsigned int pending;
	void *rings;
	size_t rings_bytes;
};

/*
 * Makes a ring for @entries commands, with IORING_SETUP_SQE128 unless @flags
 * has SMALL_SQES; other bits of @flags are the kernel's. Returns 0 or -errno.
 */
#define SMALL_SQES 0x80000000u
int ring_open(struct ring *ring, unsigned int entries, unsigned int flags);

/*
 * The next entry of the ring, all zero but @user_data, to be filled before
 * ring_submit(); there must be room.
 */
struct io_uring_sqe *ring_next(struct ring *ring, __u64 user_data);

/* Puts a command into the ring; there must be room. */
void ring_put(struct ring *ring, int fd, const struct rnvme_io *io,
	      unsigned int op, __u64 user_data);

/*
 * Submits what was put, and waits until @wait completions are there. Returns 0
 * or -errno.
 */
int ring_submit(struct ring *ring, unsigned int wait);

/* Takes a completion. Returns 0 if there is none. */
int ring_take(struct ring *ring, __u64 *user_data, int *result);

void ring_close(struct ring *ring);

#endif
