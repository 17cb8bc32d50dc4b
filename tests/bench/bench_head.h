/* tests/bench/bench_head.h - what the benchmarks of the head share: a head over a log in a directory of its own, and series as scrapes give them. */
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include "base/limits.h"
#include "base/io.h"
#include "head/head.h"

static struct wal *wal;
static struct head *head;
static char dir[1024], block_dir[1100];
static uint64_t block_bytes;

static void must(errc rc, const struct err *err)
{
	if (rc == OK)
		return;
	fprintf(stderr, "%s\n", err->msg);
	exit(1);
}

static errc on_block(void *arg, const char *path, const struct block_meta *meta, uint64_t bytes, struct err *err)
{
	(void)arg, (void)meta, (void)err;
	snprintf(block_dir, sizeof block_dir, "%s", path);
	block_bytes = bytes;
	return OK;
}

static void start(void)
{
	struct err err = {0};
	static char w[1100], c[1100], b[1100];
	snprintf(w, sizeof w, "%s/wal", dir);
	snprintf(c, sizeof c, "%s/head", dir);
	snprintf(b, sizeof b, "%s/blocks", dir);
	struct wal_config wc = {.dir = w, .sync = WAL_SYNC_ACK, .segment_bytes = LIMIT_WAL_SEGMENT_BYTES};
	must(wal_open(&wc, &wal, &err), &err);
	struct head_config hc = {
		.chunk_dir = c,
		.block_dir = b,
		.wal = wal,
		.block_range_ms = 7200000,
		.cut_delay_ms = INT64_C(1) << 60,
		.max_age_ms = INT64_C(1) << 60,
		.max_memory_bytes = 16 * GIB,
		.wal_max_bytes = 64 * GIB,
		.labels = {64, 1024, 4096},
		.node = SPAN("bench"),
		.on_block = on_block,
	};
	must(head_open(&hc, &head, &err), &err);
	must(head_load(head, &err), &err);
	must(wal_replay(wal, head_replay_frame, head, NULL, NULL, &err), &err);
	must(head_start(head, &err), &err);
}

/* 10 labels, about 310 bytes, 500 series a target. */
static void series_wire(uint32_t i, struct buf *wire)
{
	static const char *const names[10] = {
		"__name__", "availability_zone", "cluster", "container", "handler", "instance", "job", "namespace", "pod", "service"};
	char v[10][64];
	uint32_t target = i / 500, metric = i % 500;
	snprintf(v[0], 64, "process_something_%u_seconds_total", metric % 100);
	snprintf(v[1], 64, "eu-central-1");
	snprintf(v[2], 64, "kube-prod-%u", target % 10);
	snprintf(v[3], 64, "container-%u", metric % 20);
	snprintf(v[4], 64, "/api/v1/handler/%u", metric / 100);
	snprintf(v[5], 64, "10.%u.%u.%u:9100", target >> 16 & 255, target >> 8 & 255, target & 255);
	snprintf(v[6], 64, "kubernetes-service-endpoints");
	snprintf(v[7], 64, "monitoring-%u", target % 50);
	snprintf(v[8], 64, "pod-%08x-%04x", target * 2654435761u, target & 0xffff);
	snprintf(v[9], 64, "service-%u", target % 200);
	struct label l[10];
	for (int k = 0; k < 10; k++)
		l[k] = (struct label){span_cstr(names[k]), span_cstr(v[k])};
	labels_to_wire((struct labels){l, 10}, wire);
}

static double value_at(uint32_t s, uint32_t round)
{
	return s % 10 < 4 ? (double)(s % 7) : s % 10 < 9 ? (double)s + round * 15 : 1.0 / (1 + s % 97 + round);
}
