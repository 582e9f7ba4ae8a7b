// SPDX-License-Identifier: GPL-2.0
/*
 * How often two processors map and unmap a request at once, each its own, for the
 * same device; and how often one does.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/kthread.h>

#include "bench.h"
#include "ways.h"

#define PAIRS		11
#define PAIR_MS		100

struct worker {
	struct trial trial;
	struct task_struct *task;
	u64 done;
} ____cacheline_aligned_in_smp;

static const struct shape shapes[] = {
	{ "4K", 1, false, 0, SZ_4K },
	{ "128K in 32 pages", 32, true, 0, SZ_128K },
};

static int work(void *data)
{
	struct worker *w = data;
	unsigned int i;

	while (!kthread_should_stop()) {
		for (i = 0; i < 64; i++)
			map_unmap(&w->trial);
		w->done += i;
		cond_resched();
	}
	return 0;
}

/* How many requests a second the first @nr processors map; 0 if they cannot. */
static u64 rate(struct worker *workers, int nr)
{
	u64 start, done = 0, ns;
	int i;

	for (i = 0; i < nr; i++) {
		workers[i].done = 0;
		workers[i].task = kthread_create_on_cpu(work, &workers[i], i, "bench/%u");
		if (IS_ERR(workers[i].task))
			break;
	}
	if (i < nr) {
		while (i--)
			kthread_stop(workers[i].task);
		return 0;
	}
	start = ktime_get_ns();
	for (i = 0; i < nr; i++)
		wake_up_process(workers[i].task);
	msleep(PAIR_MS);
	for (i = 0; i < nr; i++)
		kthread_stop(workers[i].task);
	ns = ktime_get_ns() - start;
	for (i = 0; i < nr; i++) {
		/* What fails is quick. */
		if (workers[i].trial.bytes != blk_rq_payload_bytes(workers[i].trial.rq))
			return 0;
		done += workers[i].done;
	}
	return mul_u64_u64_div_u64(done, NSEC_PER_SEC, ns);
}

/* The median ratio of what two processors do and what one does, in hundredths. */
static int compare_rates(struct worker *workers, const char *name, const char *way)
{
	u64 ratios[PAIRS];
	int i;

	for (i = 0; i < PAIRS; i++) {
		u64 one = rate(workers, 1), two = rate(workers, 2);

		if (!one || !two)
			return -EIO;
		ratios[i] = div64_u64(two * 100, one);
	}
	sort(ratios, PAIRS, sizeof(ratios[0]), compare, NULL);
	pr_info("cpus|%s|%s|%llu|%llu\n", name, way, ratios[PAIRS / 2],
		ratios[PAIRS * 3 / 4] - ratios[PAIRS / 4]);
	return 0;
}

int run_cpus(struct bench *b)
{
	const struct way *ways[] = { &layer, &nvme };
	struct worker workers[2] = { };
	struct bench *twin;
	int ret = 0, i, j;

	/* The same device, memory and client, with room for a request of its own. */
	twin = kmemdup(b, sizeof(*b), GFP_KERNEL);
	if (!twin)
		return -ENOMEM;
	twin->layer = bench_layer_twin(b->layer);
	if (!twin->layer)
		ret = -ENOMEM;

	for (i = 0; i < ARRAY_SIZE(shapes) && !ret; i++) {
		struct request *rqs[2];

		for (j = 0; j < 2; j++) {
			rqs[j] = make_request(b, &shapes[i]);
			if (IS_ERR(rqs[j]))
				ret = PTR_ERR(rqs[j]);
		}
		for (j = 0; j < ARRAY_SIZE(ways) && !ret; j++) {
			workers[0].trial = (struct trial){ ways[j], b, rqs[0] };
			workers[1].trial = (struct trial){ ways[j], twin, rqs[1] };
			if (!maps(&workers[0].trial) || !maps(&workers[1].trial))
				ret = -EIO;
			else
				ret = compare_rates(workers, shapes[i].name, ways[j]->name);
		}
		for (j = 0; j < 2; j++)
			if (!IS_ERR(rqs[j]))
				free_request(rqs[j]);
	}
	if (twin->layer)
		bench_layer_free(twin->layer);
	kfree(twin);
	return ret;
}
