// SPDX-License-Identifier: GPL-2.0
/*
 * Copies blocks from one NVMe disk of the driver rnvme to another by way of the
 * memory of a PCI device: RAM does not see them. See help().
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <stdnoreturn.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "ring.h"

#define ROUTES "/sys/kernel/debug/physdma/routes"
#define MAX_DEPTH 64

/* A disk, or a partition, and where on it. */
struct side {
	const char *path;
	const char *role;
	int disk;		/* the block device, open */
	int file;		/* of its controller, open */
	char controller[32];	/* rnvme0 */
	char address[32];	/* 0000:01:00.0 */
	unsigned int nsid;
	unsigned int block;
	unsigned long long first;	/* byte on the whole disk */
	unsigned long long at;		/* byte on this device */
	unsigned long long size;
	unsigned long long most;	/* bytes of a command */
	__u32 buf;
};

static struct side from = { .role = "source" }, to = { .role = "target" };
static struct rnvme_buf memory = { .kind = RNVME_BUF_PROVIDER };
static char memory_address[32];
static unsigned long long size, chunk, done_bytes;
static unsigned int depth = 8;
static int by_ring, verify, quiet, only_routes;

static noreturn void die(const char *format, ...)
{
	va_list args;

	fputs("p2pcp: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static noreturn void help(int status)
{
	fputs("usage: p2pcp [OPTION]... SOURCE MEMORY TARGET\n"
	      "\n"
	      "Copies from one disk of the driver rnvme to another by way of the memory of a\n"
	      "PCI device, of which its driver lets other devices read and write.\n"
	      "\n"
	      "SOURCE, TARGET  DISK[:OFFSET], a disk or partition such as /dev/rnvme0n1, and\n"
	      "                where on it, in bytes\n"
	      "MEMORY          ADDRESS/BAR[+OFFSET[,LENGTH]], such as 0000:03:00.0/2: the BAR of\n"
	      "                a PCI device, or a part of it; what is in it is lost\n"
	      "\n"
	      "-s SIZE   so many bytes; otherwise all that SOURCE has from OFFSET on\n"
	      "-c SIZE   so many bytes at a time; otherwise as many as a command can move\n"
	      "-u        by io_uring, not by ioctl\n"
	      "-d DEPTH  so many commands at a time, with -u (8)\n"
	      "-v        compare the two in the end, through RAM\n"
	      "-r        say the routes, and copy nothing\n"
	      "-q        do not show progress\n"
	      "\n"
	      "Sizes and offsets may end in K, M or G. Needs CAP_SYS_RAWIO, and the rights to\n"
	      "read and write the disks. A file in a file system cannot be named: only the file\n"
	      "system knows where its blocks are, and may move them.\n",
	      status ? stderr : stdout);
	exit(status);
}

static unsigned long long number(const char *text, char **end)
{
	unsigned long long value;
	const char *units = "KMG", *unit;

	errno = 0;
	value = strtoull(text, end, 0);
	if (*end == text || errno || *text == '-')
		die("%s: what is this?", text);
	unit = **end ? strchr(units, **end) : NULL;
	for (int i = 0; unit && i <= unit - units; i++) {
		if (value >> 54)
			die("%s: too large", text);
		value <<= 10;
	}
	*end += !!unit;
	return value;
}

static unsigned long long all_number(const char *text)
{
	char *end;
	unsigned long long value = number(text, &end);

	if (*end)
		die("%s: what is %s?", text, end);
	return value;
}

/* The first line of a file of sysfs; false if there is none. */
static int line_of(char *line, int bytes, const char *format, ...)
{
	char path[256];
	va_list args;
	FILE *file;
	int ok;

	va_start(args, format);
	vsnprintf(path, sizeof(path), format, args);
	va_end(args);
	file = fopen(path, "r");
	if (!file)
		return 0;
	ok = !!fgets(line, bytes, file);
	fclose(file);
	return ok;
}

static unsigned long long value_of(const char *what, const char *name,
				   unsigned long long otherwise)
{
	char line[64];

	return line_of(line, sizeof(line), "/sys/class/block/%s/%s", name, what) ?
	       strtoull(line, NULL, 10) : otherwise;
}

static void open_side(struct side *side, char *text, int writes)
{
	char *colon = strrchr(text, ':'), path[64], target[256];
	unsigned int number_of, part = 0;
	const char *name;
	struct stat stat;
	ssize_t length;
	int sector, end = 0;

	if (colon) {
		*colon = 0;
		side->at = all_number(colon + 1);
	}
	side->path = text;
	name = strrchr(text, '/') ? strrchr(text, '/') + 1 : text;
	/* Who has it mounted would not know what became of it. */
	side->disk = open(text, writes ? O_RDWR | O_EXCL : O_RDONLY);
	if (side->disk < 0)
		die("%s: %s%s", text, strerror(errno), errno == EBUSY ? ": is it mounted?" : "");
	if (fstat(side->disk, &stat) || !S_ISBLK(stat.st_mode))
		die("%s: not a disk; where a file's blocks are only its file system knows", text);
	if (sscanf(name, "rnvme%un%u%n", &number_of, &side->nsid, &end) != 2 ||
	    (name[end] && sscanf(name + end, "p%u", &part) != 1))
		die("%s: not a disk of the driver rnvme", text);
	if (ioctl(side->disk, BLKGETSIZE64, &side->size) ||
	    ioctl(side->disk, BLKSSZGET, &sector))
		die("%s: %s", text, strerror(errno));
	side->block = sector;
	if (part)
		side->first = value_of("start", name, 0) * 512;
	snprintf(path, sizeof(path), "rnvme%un%u", number_of, side->nsid);
	side->most = value_of("queue/max_hw_sectors_kb", path, 128) << 10;

	snprintf(side->controller, sizeof(side->controller), "rnvme%u", number_of);
	snprintf(path, sizeof(path), "/sys/class/misc/%s/device", side->controller);
	length = readlink(path, target, sizeof(target) - 1);
	if (length > 0) {
		target[length] = 0;
		snprintf(side->address, sizeof(side->address), "%.31s",
			 strrchr(target, '/') ? strrchr(target, '/') + 1 : target);
	}
	snprintf(path, sizeof(path), "/dev/%s", side->controller);
	side->file = open(path, writes ? O_WRONLY : O_RDONLY);
	if (side->file < 0)
		die("%s: %s", path, strerror(errno));
}

/* What the memory is called, and how much of it there is. */
static void find_memory(const char *text)
{
	unsigned int domain, bus, device, function, bar;
	unsigned long long first = 0, last = 0;
	char path[64], *rest;
	int end = 0;
	FILE *file;

	if (sscanf(text, "%x:%x:%x.%x/%u%n", &domain, &bus, &device, &function, &bar, &end) != 5 ||
	    bus > 255 || device > 31 || function > 7 || bar > 5)
		die("%s: not ADDRESS/BAR, as in 0000:03:00.0/2", text);
	memory.domain = domain;
	memory.bus = bus;
	memory.devfn = device << 3 | function;
	memory.bar = bar;
	snprintf(memory_address, sizeof(memory_address), "%04x:%02x:%02x.%x", domain, bus, device,
		 function);

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource", memory_address);
	file = fopen(path, "r");
	if (!file)
		die("there is no PCI device %s", memory_address);
	for (unsigned int line = 0; line <= bar; line++)
		if (fscanf(file, "%llx %llx %*x", &first, &last) != 2)
			break;
	fclose(file);
	if (last <= first)
		die("%s has no BAR %u", memory_address, bar);

	rest = (char *)text + end;
	if (*rest == '+')
		memory.offset = number(rest + 1, &rest);
	if (memory.offset > last - first)
		die("%s: the BAR has %llu bytes", text, last - first + 1);
	memory.length = last - first + 1 - memory.offset;
	if (*rest == ',')
		memory.length = number(rest + 1, &rest);
	if (*rest)
		die("%s: what is %s?", text, rest);
}

/* Says how a controller reaches the memory. */
static void say_route(const struct side *side)
{
	char provider[32], client[32], hops[32], line[512];
	unsigned int bar;
	int end;
	FILE *file = fopen(ROUTES, "r");

	if (!file) {
		printf("%s %s: the route is not known: %s: %s (load physdma.ko, mount debugfs)\n",
		       side->role, side->path, ROUTES, strerror(errno));
		return;
	}
	while (fgets(line, sizeof(line), file)) {
		end = 0;
		if (sscanf(line, "%31s %u %31s %31s %*s %*s %*s %n", provider, &bar, client, hops,
			   &end) < 4 || !end)
			continue;
		if (bar != memory.bar || strcmp(provider, memory_address) ||
		    strcmp(client, side->address))
			continue;
		line[strcspn(line, "\n")] = 0;
		printf("%s %s: %s to BAR %u of %s: %s\n", side->role, side->path, side->address,
		       bar, provider, line + end);
		fclose(file);
		return;
	}
	fclose(file);
	printf("%s %s: BAR %u of %s is not open to other devices\n", side->role, side->path,
	       memory.bar, memory_address);
}

static void enter_memory(struct side *side)
{
	struct rnvme_buf buf = memory;

	if (ioctl(side->file, RNVME_IOC_BUF_REGISTER, &buf) == 0) {
		side->buf = buf.id;
		return;
	}
	switch (errno) {
	case EHOSTUNREACH:
		die("%s: %s has no way to that memory: see above", side->path, side->controller);
	case ENXIO:
		die("no driver has opened that part of BAR %u of %s to other devices", memory.bar,
		    memory_address);
	default:
		die("%s: the memory cannot be registered: %s", side->path, strerror(errno));
	}
}

static struct rnvme_io command(const struct side *side, unsigned long long at, unsigned int slot,
			       unsigned int bytes)
{
	return (struct rnvme_io){
		.id = side->buf,
		.nsid = side->nsid,
		.offset = slot * chunk,
		.lba = (side->first + side->at + at) / side->block,
		.length = bytes,
		.op = side == &from ? RNVME_OP_READ : RNVME_OP_WRITE,
	};
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void progress(double start, int last)
{
	static double shown;
	double seconds = now() - start;

	if (quiet || (!last && seconds - shown < 1))
		return;
	shown = seconds;
	fprintf(stderr, "%s%llu of %llu MiB, %.1f MiB/s%s", isatty(2) ? "\r" : "", done_bytes >> 20,
		size >> 20, done_bytes / 1048576.0 / (seconds > 0 ? seconds : 1),
		!isatty(2) || last ? "\n" : "   ");
}

static unsigned int bytes_at(unsigned long long at)
{
	return size - at < chunk ? size - at : chunk;
}

static noreturn void failed(const struct side *side, unsigned long long at, int error)
{
	die("%s of %s at byte %llu: %s", side == &from ? "read" : "write", side->path,
	    side->at + at, strerror(error));
}

static void copy_by_ioctl(double start)
{
	for (unsigned long long at = 0; at < size; at += chunk) {
		for (const struct side *side = &from;; side = &to) {
			struct rnvme_io io = command(side, at, 0, bytes_at(at));

			if (ioctl(side->file, RNVME_IOC_IO, &io))
				failed(side, at, errno);
			if (side == &to)
				break;
		}
		done_bytes += bytes_at(at);
		progress(start, 0);
	}
}

/* Each slot of the memory is read into, then written from, and so on. */
static void copy_by_ring(double start)
{
	struct { unsigned long long at; const struct side *side; } slots[MAX_DEPTH];
	unsigned long long next = 0, slot;
	unsigned int running = 0;
	struct ring ring;
	struct rnvme_io io;
	int result = ring_open(&ring, MAX_DEPTH, 0);

	if (result)
		die("io_uring: %s", strerror(-result));
	for (slot = 0; slot < depth && next < size; slot++, next += chunk, running++) {
		slots[slot].at = next;
		slots[slot].side = &from;
		io = command(&from, next, slot, bytes_at(next));
		ring_put(&ring, from.file, &io, RNVME_URING_CMD_IO, slot);
	}
	while (running) {
		result = ring_submit(&ring, 1);
		if (result)
			die("io_uring: %s", strerror(-result));
		while (ring_take(&ring, &slot, &result)) {
			unsigned long long at = slots[slot].at;
			const struct side *side = slots[slot].side;

			if (result)
				failed(side, at, -result);
			if (side == &to) {
				done_bytes += bytes_at(at);
				if (next >= size) {
					running--;
					continue;
				}
				at = next;
				slots[slot].at = at;
				next += chunk;
			}
			side = side == &from ? &to : &from;
			slots[slot].side = side;
			io = command(side, at, slot, bytes_at(at));
			ring_put(&ring, side->file, &io, RNVME_URING_CMD_IO, slot);
		}
		progress(start, 0);
	}
	ring_close(&ring);
}

/* Compares what is on the disks, not what is in the page cache. */
static void compare(void)
{
	const size_t most = 1 << 20;
	char *a, *b;
	int disks[2];

	disks[0] = open(from.path, O_RDONLY | O_DIRECT);
	disks[1] = open(to.path, O_RDONLY | O_DIRECT);
	if (disks[0] < 0 || disks[1] < 0 || posix_memalign((void **)&a, 4096, most) ||
	    posix_memalign((void **)&b, 4096, most))
		die("both disks cannot be read: %s", strerror(errno));
	for (unsigned long long at = 0; at < size; at += most) {
		ssize_t bytes = size - at < most ? size - at : most;

		if (pread(disks[0], a, bytes, from.at + at) != bytes ||
		    pread(disks[1], b, bytes, to.at + at) != bytes)
			die("both disks cannot be read at byte %llu: %s", at,
			    strerror(errno));
		for (ssize_t i = 0; memcmp(a, b, bytes) && i < bytes; i++)
			if (a[i] != b[i])
				die("byte %llu differs", at + i);
	}
	printf("verified: %llu bytes are the same\n", size);
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "help", 0, NULL, 'h' }, { } };
	unsigned long long unit;
	double start;
	int option;

	while ((option = getopt_long(argc, argv, "s:c:ud:vrqh", options, NULL)) >= 0) {
		switch (option) {
		case 's':
			size = all_number(optarg);
			break;
		case 'c':
			chunk = all_number(optarg);
			break;
		case 'u':
			by_ring = 1;
			break;
		case 'd':
			depth = all_number(optarg);
			break;
		case 'v':
			verify = 1;
			break;
		case 'r':
			only_routes = 1;
			break;
		case 'q':
			quiet = 1;
			break;
		case 'h':
			help(0);
		default:
			help(2);
		}
	}
	if (argc - optind != 3) {
		static const char *const names[] = { "SOURCE", "MEMORY", "TARGET" };

		if (argc - optind < 3)
			fprintf(stderr, "p2pcp: there is no %s\n", names[argc - optind]);
		else
			fprintf(stderr, "p2pcp: %s is one too many\n", argv[optind + 3]);
		help(2);
	}
	if (!depth || depth > MAX_DEPTH)
		die("-d: 1 to %d", MAX_DEPTH);

	setlinebuf(stdout);
	open_side(&from, argv[optind], 0);
	find_memory(argv[optind + 1]);
	open_side(&to, argv[optind + 2], 1);
	say_route(&from);
	say_route(&to);
	if (only_routes)
		return 0;

	if (from.at > from.size || to.at > to.size)
		die("an offset is beyond the end of its disk");
	if (!size)
		size = from.size - from.at;
	if (size > from.size - from.at || size > to.size - to.at)
		die("%llu bytes are more than the disks have there", size);
	unit = from.block > to.block ? from.block : to.block;
	if (!size || (size | (from.first + from.at) | (to.first + to.at)) % unit)
		die("offsets and size must be multiples of %llu", unit);
	if (!chunk)
		chunk = from.most < to.most ? from.most : to.most;
	if (!by_ring)
		depth = 1;
	while (depth > 1 && depth * chunk > memory.length)
		depth--;
	if (chunk > memory.length)
		chunk = memory.length / unit * unit;
	if (!chunk || chunk % unit || chunk > RNVME_MAX_IO_BYTES)
		die("-c: a multiple of %llu, at most %d", unit, RNVME_MAX_IO_BYTES);
	memory.length = depth * chunk;

	enter_memory(&from);
	enter_memory(&to);
	/* What the kernel has of the disks in its cache is written before, and forgotten after. */
	if (fsync(from.disk) || fsync(to.disk))
		die("fsync: %s", strerror(errno));
	start = now();
	if (by_ring)
		copy_by_ring(start);
	else
		copy_by_ioctl(start);
	if (fsync(to.disk))
		die("%s: what was written may not be on the disk: %s", to.path, strerror(errno));
	/* What the kernel has of it in its cache is old. */
	posix_fadvise(to.disk, 0, 0, POSIX_FADV_DONTNEED);
	progress(start, 1);
	printf("copied %llu bytes by %s, %llu at a time, through BAR %u of %s\n", size,
	       by_ring ? "io_uring" : "ioctl", chunk, memory.bar, memory_address);
	if (verify)
		compare();
	return 0;
}
