// SPDX-License-Identifier: GPL-2.0
/*
 * Does with a file of rnvme what its arguments say, one after the other, and
 * prints what comes of each: a number, or the name of an error.
 *
 *	rnvme_try r|w|rw /dev/rnvme0 COMMAND[,FIELD=VALUE]...
 *
 * buf		registers what the fields of struct rnvme_buf say
 * user		registers memory of its own, `length` bytes of it; with
 *		`fill` set to that byte first
 * unbuf	unregisters buffer `id`
 * io, cmd	struct rnvme_io, by ioctl and by io_uring; with `times` and
 *		`step` that many of them at once, each so many bytes further in
 *		buffer and disk, of 512 byte blocks; 0 if all succeed
 * small	the same in a ring with entries of the normal size
 * start, wait	puts a command into a ring, and waits for all that are there
 * leave	ends at once, whatever is in the ring
 * byte		the byte at `offset` of the own memory
 * ioctl	number `nr`, with no argument
 * bad		struct rnvme_io at an address that is not the program's
 * limit	lets itself lock `nr` bytes, and gives up CAP_IPC_LOCK
 * drop		becomes the user nobody, without any capability
 * open		opens the file again
 * sleep	waits `ms` milliseconds
 * stop		stops itself, until it is told to go on
 * fuzz		`times` ioctls and commands made of random bits, from `seed`
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ring.h"

static struct rnvme_buf buf;
static struct rnvme_buf_id which;
static struct rnvme_io io;
static unsigned long long times, step, nr, ms, seed, fill, op;
static struct ring ring;
static unsigned int waiting;
static unsigned char *own;

static const struct {
	const char *name;
	void *at;
	size_t size;
} fields[] = {
	{ "kind", &buf.kind, sizeof(buf.kind) },
	{ "flags", &buf.flags, sizeof(buf.flags) },
	{ "domain", &buf.domain, sizeof(buf.domain) },
	{ "bus", &buf.bus, sizeof(buf.bus) },
	{ "devfn", &buf.devfn, sizeof(buf.devfn) },
	{ "bar", &buf.bar, sizeof(buf.bar) },
	{ "reserved1", &buf.reserved1, sizeof(buf.reserved1) },
	{ "offset", &buf.offset, sizeof(buf.offset) },
	{ "length", &buf.length, sizeof(buf.length) },
	{ "id", &buf.id, sizeof(buf.id) },
	{ "reserved2", &buf.reserved2, sizeof(buf.reserved2) },
	{ "id", &which.id, sizeof(which.id) },
	{ "reserved", &which.reserved, sizeof(which.reserved) },
	{ "id", &io.id, sizeof(io.id) },
	{ "nsid", &io.nsid, sizeof(io.nsid) },
	{ "offset", &io.offset, sizeof(io.offset) },
	{ "lba", &io.lba, sizeof(io.lba) },
	{ "length", &io.length, sizeof(io.length) },
	{ "op", &io.op, sizeof(io.op) },
	{ "flags", &io.flags, sizeof(io.flags) },
	{ "reserved3", &buf.reserved3[1], sizeof(buf.reserved3[1]) },
	{ "reserved", &io.reserved[1], sizeof(io.reserved[1]) },
	{ "times", &times, sizeof(times) },
	{ "step", &step, sizeof(step) },
	{ "nr", &nr, sizeof(nr) },
	{ "ms", &ms, sizeof(ms) },
	{ "seed", &seed, sizeof(seed) },
	{ "fill", &fill, sizeof(fill) },
	{ "cmd_op", &op, sizeof(op) },
};

/* All structures have it: a command uses its own. */
static void set(const char *name, unsigned long long value)
{
	int known = 0;

	for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++) {
		if (strcmp(fields[i].name, name))
			continue;
		memcpy(fields[i].at, &value, fields[i].size);
		known = 1;
	}
	if (!known) {
		fprintf(stderr, "no field %s\n", name);
		exit(2);
	}
}

static int say(const char *what, long result)
{
	if (result < 0)
		printf("%s %s\n", what, strerrorname_np(-result) ?: "?");
	else
		printf("%s %ld\n", what, result);
	fflush(stdout);
	return result < 0;
}

static long checked(int result)
{
	return result < 0 ? -errno : result;
}

static void begin(unsigned int entries, unsigned int flags)
{
	int result;

	if (ring.entries)
		return;
	result = ring_open(&ring, entries, flags);
	if (result) {
		say("ring", result);
		exit(2);
	}
}

/* The first error of all that are waited for, or 0. */
static long finish(void)
{
	long first = 0;
	__u64 data;
	int result = ring_submit(&ring, waiting);

	if (result)
		return result;
	while (waiting) {
		if (!ring_take(&ring, &data, &result)) {
			result = ring_submit(&ring, 1);
			if (result)
				return result;
			continue;
		}
		waiting--;
		if (result && !first)
			first = result;
	}
	return first;
}

static void put(int fd, unsigned long long number)
{
	struct rnvme_io one = io;

	one.offset += number * step;
	one.lba += number * step / 512;
	ring_put(&ring, fd, &one, op ?: RNVME_URING_CMD_IO, number);
	waiting++;
}

static unsigned long long rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

/* Zero, small, near a power of two, or anything. */
static unsigned long long number(void)
{
	switch (rnd() % 5) {
	case 0:
		return 0;
	case 1:
		return rnd() % 4;
	case 2:
		return 512 * (rnd() % 64);
	case 3:
		return (1ull << rnd() % 64) - 2 + rnd() % 4;
	default:
		return rnd();
	}
}

/* Whether any of it did something. */
static int fuzz(int fd)
{
	static const unsigned int known[] = {
		RNVME_IOC_BUF_REGISTER, RNVME_IOC_BUF_UNREGISTER, RNVME_IOC_IO,
	};
	unsigned long long good = 0;
	struct rnvme_buf template = buf;
	void *page = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	begin(64, 0);
	for (unsigned long long i = 0; i < times; i++) {
		unsigned int command = known[rnd() % 3];

		if (rnd() % 3 == 0) {
			/* Mostly right, with one thing changed. */
			buf = template;
			switch (rnd() % 8) {
			case 0:
				buf.offset = number();
				break;
			case 1:
				buf.length = number();
				break;
			case 2:
				buf.bar = rnd();
				break;
			case 3:
				buf.bus = rnd();
				break;
			case 4:
				buf.kind = number();
				break;
			case 5:
				buf.kind = RNVME_BUF_USER;
				buf.bus = 0;
				buf.bar = 0;
				buf.offset = (unsigned long)page + number() % (1 << 21);
				buf.length = number() % (1 << 20);
				break;
			case 6:
				buf.flags = number();
				break;
			}
		} else if (rnd() % 8 == 0) {
			for (size_t b = 0; b < sizeof(buf); b++)
				((unsigned char *)&buf)[b] = rnd();
		}
		which.id = rnd() % 16 ? rnd() % 8 : number();
		which.reserved = rnd() % 16 ? 0 : number();
		io.id = rnd() % 16 ? rnd() % 8 : number();
		io.nsid = rnd() % 8 ? 1 : number();
		io.offset = rnd() % 4 ? 512 * (rnd() % 16) : number();
		io.lba = rnd() % 4 ? rnd() % 1024 : number();
		io.length = rnd() % 4 ? 512 * (1 + rnd() % 16) : number();
		io.op = rnd() % 8 ? 1 + rnd() % 2 : number();
		io.flags = rnd() % 16 ? 0 : number();
		io.reserved[0] = rnd() % 16 ? 0 : number();
		io.reserved[1] = 0;

		if (rnd() % 2) {
			ring_put(&ring, fd, &io,
				 rnd() % 16 ? RNVME_URING_CMD_IO : number(), i);
			waiting++;
			if (waiting == 64 || rnd() % 8 == 0)
				good += finish() == 0;
			continue;
		}
		if (rnd() % 64 == 0)
			command = number();
		good += ioctl(fd, command, command == RNVME_IOC_IO ? (void *)&io :
			      command == RNVME_IOC_BUF_UNREGISTER ? (void *)&which :
			      (void *)&buf) == 0;
	}
	finish();
	return good > 0;
}

static int run(int *fd, const char *path, int mode, char *command)
{
	char *word = strtok(command, ","), *field;
	long result = 0;

	memset(&buf, 0, sizeof(buf));
	memset(&which, 0, sizeof(which));
	memset(&io, 0, sizeof(io));
	times = 1;
	step = 0;
	nr = 0;
	ms = 0;
	op = 0;
	seed = 88172645463325252ull;
	fill = 256;
	while ((field = strtok(NULL, ","))) {
		char *value = strchr(field, '=');

		if (!value)
			exit(2);
		*value = 0;
		set(field, strtoull(value + 1, NULL, 0));
	}

	if (!strcmp(word, "buf")) {
		result = checked(ioctl(*fd, RNVME_IOC_BUF_REGISTER, &buf));
		if (!result)
			result = buf.id;
	} else if (!strcmp(word, "user")) {
		own = mmap(NULL, buf.length, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (fill < 256)
			memset(own, fill, buf.length);
		buf.kind = RNVME_BUF_USER;
		buf.offset = (unsigned long)own;
		result = checked(ioctl(*fd, RNVME_IOC_BUF_REGISTER, &buf));
		if (!result)
			result = buf.id;
	} else if (!strcmp(word, "byte")) {
		result = own[io.offset];
	} else if (!strcmp(word, "unbuf")) {
		result = checked(ioctl(*fd, RNVME_IOC_BUF_UNREGISTER, &which));
	} else if (!strcmp(word, "io")) {
		result = checked(ioctl(*fd, RNVME_IOC_IO, &io));
	} else if (!strcmp(word, "bad")) {
		result = checked(ioctl(*fd, RNVME_IOC_IO, (void *)8));
	} else if (!strcmp(word, "ioctl")) {
		result = checked(ioctl(*fd, nr, NULL));
	} else if (!strcmp(word, "cmd") || !strcmp(word, "small")) {
		begin(times, *word == 's' ? SMALL_SQES : 0);
		for (unsigned long long i = 0; i < times; i++)
			put(*fd, i);
		result = finish();
		ring_close(&ring);
		ring.entries = 0;
	} else if (!strcmp(word, "start")) {
		begin(256, 0);
		for (unsigned long long i = 0; i < times; i++)
			put(*fd, i);
		result = ring_submit(&ring, 0);
	} else if (!strcmp(word, "wait")) {
		result = finish();
	} else if (!strcmp(word, "leave")) {
		_exit(0);
	} else if (!strcmp(word, "drop")) {
		result = checked(setgroups(0, NULL) ?: setgid(65534) ?: setuid(65534));
	} else if (!strcmp(word, "limit")) {
		struct rlimit limit = { nr, nr };
		struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
		struct __user_cap_data_struct caps[2];

		result = checked(setrlimit(RLIMIT_MEMLOCK, &limit) ?:
				 (int)syscall(__NR_capget, &header, caps));
		caps[0].effective &= ~(1u << CAP_IPC_LOCK);
		caps[0].permitted &= ~(1u << CAP_IPC_LOCK);
		result = result ?: checked(syscall(__NR_capset, &header, caps));
	} else if (!strcmp(word, "open")) {
		int again = open(path, mode);

		result = again < 0 ? -errno : 0;
		if (again >= 0) {
			close(*fd);
			*fd = again;
		}
	} else if (!strcmp(word, "sleep")) {
		usleep(ms * 1000);
	} else if (!strcmp(word, "stop")) {
		raise(SIGSTOP);
	} else if (!strcmp(word, "fuzz")) {
		result = fuzz(*fd);
	} else {
		fprintf(stderr, "no command %s\n", word);
		exit(2);
	}
	return say(word, result);
}

int main(int argc, char **argv)
{
	int mode, fd;

	if (argc < 3)
		return 2;
	mode = !strcmp(argv[1], "r") ? O_RDONLY :
	       !strcmp(argv[1], "w") ? O_WRONLY : O_RDWR;
	fd = open(argv[2], mode);
	if (fd < 0)
		return say("open", -errno);
	for (int i = 3; i < argc; i++)
		run(&fd, argv[2], mode, argv[i]);
	return 0;
}
