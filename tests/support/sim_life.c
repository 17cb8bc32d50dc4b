/* tests/support/sim_life.c - making, cutting, recording and steering a sim: what a test says, as opposed to what the code under test calls. */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "tests/support/sim_int.h"

/* ---- life ---- */

static struct sim *sim_of(struct disk *d, uint64_t seed)
{
	struct sim *s = xalloc(sizeof *s);
	pthread_mutex_init(&s->mu, NULL);
	s->disk = d;
	s->random = seed;
	s->power_left = NEVER;
	s->capacity_pages = NEVER;
	return s;
}

struct sim *sim_new(uint64_t seed)
{
	struct sim *s = sim_of(disk_new(), seed);
	sim_use(s);
	return s;
}

void sim_use(struct sim *s)
{
	sim_current = s;
	io_ops = s ? &sim_table : &io_posix;
}

static void forget_files(struct sim *s)
{
	for (size_t i = 0; i < s->n_files; i++) {
		bool dead = s->files[i].used || s->files[i].dead;
		free(s->files[i].path);
		s->files[i] = (struct file){.dead = dead};
	}
}

void sim_free(struct sim *s)
{
	if (!s)
		return;
	if (sim_current == s)
		sim_use(NULL);
	forget_files(s);
	free(s->files);
	sim_tape_free(s->tape);
	disk_free(s->disk);
	pthread_mutex_destroy(&s->mu);
	free(s);
}

#define LOCKED(s, expr)                                                                                                                              \
	({                                                                                                                                           \
		pthread_mutex_lock(&(s)->mu);                                                                                                        \
		__auto_type r_ = (expr);                                                                                                             \
		pthread_mutex_unlock(&(s)->mu);                                                                                                      \
		r_;                                                                                                                                  \
	})

uint64_t sim_ops(struct sim *s)
{
	return LOCKED(s, s->ops);
}

uint64_t sim_syncs(struct sim *s)
{
	return LOCKED(s, s->syncs);
}

size_t sim_open_fds(struct sim *s)
{
	size_t n = 0;
	pthread_mutex_lock(&s->mu);
	for (size_t i = 0; i < s->n_files; i++)
		n += s->files[i].used;
	pthread_mutex_unlock(&s->mu);
	return n;
}

/* ---- power ---- */

const char *sim_loss_name(enum sim_loss loss)
{
	static const char *const names[SIM_LOSSES] = {
		"keep-all", "drop-all", "tear-sectors", "tear-pages", "drop-entries", "entries-first", "grow-zeros"};
	return loss < SIM_LOSSES ? names[loss] : "?";
}

void sim_power_off_after(struct sim *s, uint64_t n)
{
	pthread_mutex_lock(&s->mu);
	s->power_left = n;
	s->off = n == 0;
	pthread_mutex_unlock(&s->mu);
}

bool sim_power_is_off(struct sim *s)
{
	return LOCKED(s, s->off);
}

void sim_power_on(struct sim *s, enum sim_loss loss, uint64_t seed)
{
	pthread_mutex_lock(&s->mu);
	ASSERT(!s->tape);
	disk_crash(s->disk, loss, seed);
	forget_files(s);
	s->power_left = NEVER;
	s->off = false;
	s->fault = (struct sim_fault){0};
	s->fault_error_due = false;
	pthread_mutex_unlock(&s->mu);
}

/* ---- recording ---- */

void sim_record(struct sim *s)
{
	pthread_mutex_lock(&s->mu);
	ASSERT(!s->tape);
	s->tape = xalloc(sizeof *s->tape);
	s->tape->start = disk_clone(s->disk);
	disk_settle(s->tape->start);
	s->ops = 0;
	pthread_mutex_unlock(&s->mu);
}

struct sim_tape *sim_tape_take(struct sim *s)
{
	pthread_mutex_lock(&s->mu);
	struct sim_tape *t = s->tape;
	s->tape = NULL;
	pthread_mutex_unlock(&s->mu);
	return t;
}

uint64_t sim_tape_len(const struct sim_tape *t)
{
	uint64_t n = 0;
	for (size_t i = 0; i < t->n; i++)
		n += !t->v[i].lost;
	return n;
}

struct sim *sim_tape_crash(struct sim_tape *t, uint64_t k, enum sim_loss loss, uint64_t seed)
{
	if (!t->at || t->done_ops > k) {
		disk_free(t->at);
		t->at = disk_clone(t->start);
		t->done = 0;
		t->done_ops = 0;
	}
	while (t->done < t->n && t->done_ops + !t->v[t->done].lost <= k) {
		const struct op *op = &t->v[t->done++];
		t->done_ops += !op->lost;
		disk_do(t->at, op);
		if (op->kind == OP_SYNC && t->at->v[op->ino].is_dir)
			disk_collect(t->at, NULL);
	}
	struct disk *d = disk_clone(t->at);
	disk_crash(d, loss, seed ^ k * UINT64_C(0x9e3779b97f4a7c15));
	return sim_of(d, seed ^ k);
}

char *sim_tape_text(const struct sim_tape *t, uint64_t k, char *out, size_t size)
{
	static const char *const kinds[] = {"create", "pwrite", "truncate", "allocate", "sync", "rename to", "link", "unlink", "mkdir", "rmdir"};
	snprintf(out, size, "nothing");
	for (size_t i = 0; i < t->n && k > 0; i++) {
		const struct op *op = &t->v[i];
		if (op->lost || --k > 0)
			continue;
		if (op->kind == OP_WRITE || op->kind == OP_ALLOCATE)
			snprintf(out, size, "%s %s %" PRIu64 "+%" PRIu64, kinds[op->kind], op->path, op->off, op->n);
		else if (op->kind == OP_TRUNCATE)
			snprintf(out, size, "%s %s %" PRIu64, kinds[op->kind], op->path, op->n);
		else
			snprintf(out, size, "%s %s", kinds[op->kind], op->path);
	}
	return out;
}

void sim_tape_free(struct sim_tape *t)
{
	if (!t)
		return;
	for (size_t i = 0; i < t->n; i++) {
		free(t->v[i].name[0]);
		free(t->v[i].name[1]);
		free(t->v[i].path);
		free(t->v[i].data);
	}
	free(t->v);
	disk_free(t->start);
	disk_free(t->at);
	free(t);
}

/* ---- faults and clock ---- */

void sim_fault(struct sim *s, const struct sim_fault *f)
{
	pthread_mutex_lock(&s->mu);
	s->fault = f ? *f : (struct sim_fault){0};
	s->fault_seen = 0;
	s->fault_hits = 0;
	s->fault_error_due = false;
	pthread_mutex_unlock(&s->mu);
}

uint64_t sim_fault_hits(struct sim *s)
{
	return LOCKED(s, s->fault_hits);
}

void sim_capacity(struct sim *s, uint64_t bytes)
{
	pthread_mutex_lock(&s->mu);
	s->capacity_pages = bytes / PAGE;
	sim_account_locked(s);
	pthread_mutex_unlock(&s->mu);
}

void sim_sync_delay(struct sim *s, int64_t ms)
{
	pthread_mutex_lock(&s->mu);
	s->sync_delay_ms = ms;
	pthread_mutex_unlock(&s->mu);
}

bool sim_flip(struct sim *s, const char *path, uint64_t offset, uint8_t mask)
{
	pthread_mutex_lock(&s->mu);
	uint32_t ino = sim_find(s->disk, path);
	bool done = ino != NO_INODE && disk_flip(&s->disk->v[ino], offset, mask);
	pthread_mutex_unlock(&s->mu);
	return done;
}

void sim_set_now(struct sim *s, int64_t now_ms)
{
	pthread_mutex_lock(&s->mu);
	s->now_offset_ms = s->frozen ? now_ms : now_ms - io_posix.now_ms();
	pthread_mutex_unlock(&s->mu);
}

void sim_freeze(struct sim *s)
{
	pthread_mutex_lock(&s->mu);
	if (!s->frozen) {
		s->now_offset_ms += io_posix.now_ms();
		s->mono_offset_ns += io_posix.mono_ns();
		s->frozen = true;
	}
	pthread_mutex_unlock(&s->mu);
}

void sim_advance(struct sim *s, int64_t ms)
{
	pthread_mutex_lock(&s->mu);
	s->now_offset_ms += ms;
	s->mono_offset_ns += ms * 1000000;
	pthread_mutex_unlock(&s->mu);
}
