// SPDX-License-Identifier: GPL-2.0

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ring.h"

int ring_open(struct ring *ring, unsigned int entries, unsigned int flags)
{
	struct io_uring_params p = { 0 };
	size_t sq, cq;
	char *at;

	memset(ring, 0, sizeof(*ring));
	p.flags = flags & ~SMALL_SQES;
	if (!(flags & SMALL_SQES))
		p.flags |= IORING_SETUP_SQE128;
	ring->sqe_bytes = flags & SMALL_SQES ? 64 : 128;
	ring->fd = syscall(__NR_io_uring_setup, entries, &p);
	if (ring->fd < 0)
		return -errno;

	/* Every kernel that has rnvme maps both rings at once. */
	sq = p.sq_off.array + p.sq_entries * sizeof(unsigned int);
	cq = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
	ring->rings_bytes = sq > cq ? sq : cq;
	ring->rings = mmap(NULL, ring->rings_bytes, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_POPULATE, ring->fd,
			   IORING_OFF_SQ_RING);
	if (ring->rings == MAP_FAILED)
		goto fail;
	ring->sqes = mmap(NULL, p.sq_entries * ring->sqe_bytes,
			  PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			  ring->fd, IORING_OFF_SQES);
	if (ring->sqes == MAP_FAILED)
		goto fail;

	at = ring->rings;
	ring->entries = p.sq_entries;
	ring->sq_tail = (unsigned int *)(at + p.sq_off.tail);
	ring->sq_mask = (unsigned int *)(at + p.sq_off.ring_mask);
	ring->sq_array = (unsigned int *)(at + p.sq_off.array);
	ring->cq_head = (unsigned int *)(at + p.cq_off.head);
	ring->cq_tail = (unsigned int *)(at + p.cq_off.tail);
	ring->cq_mask = (unsigned int *)(at + p.cq_off.ring_mask);
	ring->cqes = (struct io_uring_cqe *)(at + p.cq_off.cqes);
	return 0;

fail:
	sq = errno;
	close(ring->fd);
	return -(int)sq;
}

struct io_uring_sqe *ring_next(struct ring *ring, __u64 user_data)
{
	unsigned int tail = *ring->sq_tail;
	unsigned int index = tail & *ring->sq_mask;
	struct io_uring_sqe *sqe = (void *)(ring->sqes + index * ring->sqe_bytes);

	memset(sqe, 0, ring->sqe_bytes);
	sqe->user_data = user_data;
	ring->sq_array[index] = index;
	/* No thread of the kernel's looks at it before it is submitted. */
	__atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
	ring->pending++;
	return sqe;
}

void ring_put(struct ring *ring, int fd, const struct rnvme_io *io,
	      unsigned int op, __u64 user_data)
{
	struct io_uring_sqe *sqe = ring_next(ring, user_data);

	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = fd;
	sqe->cmd_op = op;
	/* What does not fit is cut off, for those who try that. */
	memcpy((char *)sqe + 48, io, ring->sqe_bytes == 128 ? sizeof(*io) : 16);
}

int ring_submit(struct ring *ring, unsigned int wait)
{
	do {
		int done = syscall(__NR_io_uring_enter, ring->fd, ring->pending,
				   wait, wait ? IORING_ENTER_GETEVENTS : 0,
				   NULL, 0);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return -errno;
		ring->pending -= done;
	} while (ring->pending);
	return 0;
}

int ring_take(struct ring *ring, __u64 *user_data, int *result)
{
	unsigned int head = *ring->cq_head;
	const struct io_uring_cqe *cqe;

	if (head == __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE))
		return 0;
	cqe = &ring->cqes[head & *ring->cq_mask];
	*user_data = cqe->user_data;
	*result = cqe->res;
	__atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
	return 1;
}

void ring_close(struct ring *ring)
{
	munmap(ring->sqes, ring->entries * ring->sqe_bytes);
	munmap(ring->rings, ring->rings_bytes);
	close(ring->fd);
}
