// SPDX-License-Identifier: GPL-2.0
/*
 * Reads blocks of a disk into memory of this program, many at a time, as fast as
 * it goes, and says how fast that was:
 *
 *	rnvme_rate mapped|premapped FILE DEPTH COUNT BYTES [instructions]
 *
 * mapped: FILE is a disk, read with O_DIRECT into a fixed buffer of io_uring: it
 * is pinned once, but its driver maps it for each request. premapped: FILE is
 * /dev/rnvme0 or so, of which the first namespace is read; the memory is
 * registered there, and mapped once. These reads do not pass through the block
 * layer's front, either.
 *
 * FILE may be several, with commas between: one after the other, into the same
 * memory, which is as scattered for all of them.
 *
 * Prints the requests of each and the nanoseconds that they took. With "instructions", on
 * a machine of one processor in which time is instructions: those that it was
 * not left over to another process of ours, which counts. It is never idle then.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "ring.h"

/* How much is read again and again, of which each read is a part. */
#define AREA (32 << 20)

static int file;
static char *memory;
static int is_premapped;
static unsigned int bytes;
static struct rnvme_buf buf = { .kind = RNVME_BUF_USER };

static void die(const char *what, int error)
{
	fprintf(stderr, "rnvme_rate: %s: %s\n", what, strerror(error));
	exit(1);
}

static unsigned long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

static unsigned long long *count_of_it;
static pid_t counter;
static double each;

static unsigned long long counted(void)
{
	return __atomic_load_n(count_of_it, __ATOMIC_RELAXED);
}

/* Has another process count whenever nobody else has anything to do. */
static void begin_to_count(void)
{
	const struct timespec pause = { .tv_nsec = 300000000 };
	struct sched_param none = { 0 };
	unsigned long long start, first;

	count_of_it = mmap(NULL, sizeof(*count_of_it), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (count_of_it == MAP_FAILED)
		die("memory", errno);
	counter = fork();
	if (counter < 0)
		die("fork", errno);
	if (!counter) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (sched_setscheduler(0, SCHED_IDLE, &none))
			die("SCHED_IDLE", errno);
		for (first = 1;; first++)
			__atomic_store_n(count_of_it, first, __ATOMIC_RELAXED);
	}
	/* How long that takes it. */
	nanosleep(&pause, NULL);
	first = counted();
	start = now();
	nanosleep(&pause, NULL);
	each = (double)(now() - start) / (counted() - first);
}

static void put(struct ring *ring, unsigned int slot, unsigned long long number)
{
	/* No two in a row are neighbours, which would become one request. */
	unsigned long long at = number * 97 % (AREA / bytes) * bytes;
	struct rnvme_io io = {
		.id = buf.id, .nsid = 1, .offset = slot * bytes, .lba = at / 512,
		.length = bytes, .op = RNVME_OP_READ,
	};
	struct io_uring_sqe *sqe;

	if (is_premapped) {
		ring_put(ring, file, &io, RNVME_URING_CMD_IO, slot);
		return;
	}
	sqe = ring_next(ring, slot);
	sqe->opcode = IORING_OP_READ_FIXED;
	sqe->fd = file;
	sqe->addr = (unsigned long)memory + slot * bytes;
	sqe->len = bytes;
	sqe->off = at;
}

/* Reads so many blocks of the file. Returns how long that took. */
static unsigned long long read_all(struct ring *ring, unsigned long long depth,
				   unsigned long long count)
{
	unsigned long long next, done = 0, slot, start, first = 0;
	int result;

	buf.id = 0;
	buf.offset = (unsigned long)memory;
	buf.length = depth * bytes;
	if (is_premapped && ioctl(file, RNVME_IOC_BUF_REGISTER, &buf))
		die("RNVME_IOC_BUF_REGISTER", errno);
	if (counter)
		first = counted();
	start = now();
	for (next = 0; next < depth && next < count; next++)
		put(ring, next, next);
	while (done < count) {
		result = ring_submit(ring, 1);
		if (result)
			die("io_uring", -result);
		while (ring_take(ring, &slot, &result)) {
			if (result != (is_premapped ? 0 : (int)bytes))
				die("a request", result < 0 ? -result : EIO);
			if (next < count)
				put(ring, slot, next++);
			done++;
		}
	}
	start = now() - start;
	return counter ? start - (counted() - first) * each : start;
}

int main(int argc, char **argv)
{
	unsigned long long depth, count;
	struct ring ring;
	char *name;
	int result;

	if (argc != 6 && argc != 7)
		die("usage: rnvme_rate mapped|premapped FILE DEPTH COUNT BYTES [instructions]",
		    EINVAL);
	is_premapped = !strcmp(argv[1], "premapped");
	depth = strtoull(argv[3], NULL, 0);
	count = strtoull(argv[4], NULL, 0);
	bytes = strtoul(argv[5], NULL, 0);
	if (!bytes || bytes > AREA)
		die(argv[5], EINVAL);
	memory = mmap(NULL, depth * bytes, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (memory == MAP_FAILED)
		die("memory", errno);
	/* The same ring for both ways, and the same memory for all files. */
	result = ring_open(&ring, depth, 0);
	if (result)
		die("io_uring", -result);
	if (!is_premapped && syscall(__NR_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS,
				     &(struct iovec){ memory, depth * bytes }, 1))
		die("IORING_REGISTER_BUFFERS", errno);
	if (argc == 7)
		begin_to_count();
	for (name = strtok(argv[2], ","); name; name = strtok(NULL, ",")) {
		file = open(name, is_premapped ? O_RDWR : O_RDONLY | O_DIRECT);
		if (file < 0)
			die(name, errno);
		printf("%llu %llu\n", count, read_all(&ring, depth, count));
		close(file);
	}
	if (counter)
		kill(counter, SIGKILL);
	return 0;
}
