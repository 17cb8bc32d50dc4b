/* tests/support/sim.h - a disk, a clock and a die for tests: any call can fail, and power can be cut between any two.
 *
 * A sim replaces the table of base/io.h with a disk in memory. Every file and every directory has two images: what programs see
 * (cached), and what a power cut leaves (durable).
 *
 *   - A file's bytes and size become durable by fdatasync or fsync of a descriptor of that file. Nothing else: not close, not rename.
 *   - An entry of a directory (created, linked, renamed, removed) becomes durable by fsync of that directory, and of no other and of no
 *     file. A rename between two directories is atomic and belongs to the directory it goes to.
 *   - After a failed sync the data that it should have written is lost: programs still see it, no later sync writes it (as Linux does).
 *   - rename replaces atomically: after a cut there is the old file or the new one, but the new one may be empty when it was not synced.
 *
 * One operation is one call that changes something: a creating or truncating open, pwrite, ftruncate, fallocate, fdatasync, fsync,
 * rename, link, unlink, mkdir, rmdir. They are counted from 1; reads and failed calls are not operations.
 *
 * ---- Sweep 1: cut the power after each operation and go on with what is left ----
 *
 *     for (uint64_t n = 1;; n++) {
 *             struct sim *sim = sim_new(seed);                  // io_ops now points to it
 *             sim_power_off_after(sim, n);                      // from then on every call gives EIO
 *             struct ledger acked = workload();                 // open, write, close; its errors are expected
 *             bool finished = !sim_power_is_off(sim);
 *             sim_power_on(sim, SIM_TEAR_SECTORS, seed + n);    // descriptors are gone, unsynced data is torn
 *             assert_nothing_lost(&acked);                      // open again, replay, compare
 *             sim_free(sim);                                    // io_ops points to io_posix again
 *             if (finished)
 *                     break;
 *     }
 *
 * ---- Sweep 2: the same in linear time, for thousands of states: record once, crash at every prefix ----
 *
 *     struct sim *sim = sim_new(seed);
 *     sim_record(sim);
 *     workload();                                               // notes sim_ops(sim) whenever something is acknowledged
 *     struct sim_tape *tape = sim_tape_take(sim);
 *     for (uint64_t k = 0; k <= sim_tape_len(tape); k++) {
 *             for (enum sim_loss loss = 0; loss < SIM_LOSSES; loss++) {
 *                     struct sim *after = sim_tape_crash(tape, k, loss, seed);    // ascending k is cheap
 *                     sim_use(after);
 *                     // what was acknowledged with sim_ops() <= k must be there
 *                     sim_free(after);
 *             }
 *     }
 *     sim_tape_free(tape);
 *     sim_free(sim);
 *
 * ---- Sweep 3: the n-th call fails ----
 *
 *     for (uint64_t n = 1;; n++) {
 *             struct sim *sim = sim_new(seed);
 *             sim_fault(sim, &(struct sim_fault){.calls = SIM_WRITE | SIM_SYNC, .nth = n, .error = ENOSPC, .sticky = true});
 *             workload();
 *             bool hit = sim_fault_hits(sim) > 0;
 *             ...
 *     }
 *
 * Threads: the code under test may use any number; making, using, freeing and powering on belong to one test thread while no other
 * runs. The sim's own memory never fails and is not counted by fail_alloc.h.
 * Not simulated: permissions, times but mtime, mmap that sees later writes (it is a copy), paths above the root; "data" and "/data"
 * are the same place, and only the root directory is there at first.
 */
#pragma once
#include "base/io.h"

struct sim;
struct sim_tape;

/* An empty disk without a limit; all its randomness comes from seed. Becomes the one in use. */
struct sim *sim_new(uint64_t seed);
/* Makes io_ops point to this one; NULL: to io_posix. */
void sim_use(struct sim *s);
/* Frees it; when it was in use, io_ops points to io_posix again. NULL is fine. */
void sim_free(struct sim *s);

/* Operations so far. */
uint64_t sim_ops(struct sim *s);
/* fdatasync and fsync calls so far that succeeded. */
uint64_t sim_syncs(struct sim *s);
/* Descriptors open now: 0 after a clean close of everything. */
size_t sim_open_fds(struct sim *s);

/* ---- power ---- */

/* What happens to data and entries that were not synced. What was synced is there in every case. */
enum sim_loss {
	SIM_KEEP_ALL,	   /* everything reached the disk: as after kill -9 */
	SIM_DROP_ALL,	   /* nothing did */
	SIM_TEAR_SECTORS,  /* each 512-byte sector, each file's size and each entry: old or new, by seed */
	SIM_TEAR_PAGES,	   /* the same with 4 KiB pages */
	SIM_DROP_ENTRIES,  /* data is kept, changes of directories are lost */
	SIM_ENTRIES_FIRST, /* changes of directories are kept, data and sizes are lost: the rename before the data */
	SIM_GROW_ZEROS,	   /* changes of directories and sizes are kept; unsynced bytes are zero where there was nothing durable */
	SIM_LOSSES
};
const char *sim_loss_name(enum sim_loss loss);

/* The power fails after n more operations (0: now). From then on every call gives EIO. */
void sim_power_off_after(struct sim *s, uint64_t n);
bool sim_power_is_off(struct sim *s);
/* Cuts the power if it is still on, applies the loss, forgets all descriptors and locks (using an old one gives EBADF) and pending
 * faults, and goes on. */
void sim_power_on(struct sim *s, enum sim_loss loss, uint64_t seed);

/* ---- recording ---- */

/* Keeps every operation from now on with its data; sim_ops counts from here. The disk as it is now, all of it durable, is the tape's
 * beginning. */
void sim_record(struct sim *s);
struct sim_tape *sim_tape_take(struct sim *s);
uint64_t sim_tape_len(const struct sim_tape *t);
/* A new disk: what a power cut after the tape's first k operations leaves. Not in use yet. Costs as many steps as k is above the k of the
 * call before; going back starts anew. */
struct sim *sim_tape_crash(struct sim_tape *t, uint64_t k, enum sim_loss loss, uint64_t seed);
/* "pwrite data/wal/00000001.wal 4096+512": the tape's operation k, from 1; for messages. Returns out. */
char *sim_tape_text(const struct sim_tape *t, uint64_t k, char *out, size_t size);
void sim_tape_free(struct sim_tape *t);

/* ---- faults ---- */

enum sim_call {
	SIM_OPEN = 1,
	SIM_READ = 2,	/* pread, mmap_ro */
	SIM_WRITE = 4,	/* pwrite */
	SIM_SYNC = 8,	/* fdatasync, fsync */
	SIM_SPACE = 16, /* ftruncate, fallocate */
	SIM_NAMES = 32, /* rename, link, unlink, mkdir, rmdir */
	SIM_LOOK = 64,	/* stat, fstat, listdir, statfs, flock_nb */
	SIM_CHANGES = SIM_OPEN | SIM_WRITE | SIM_SYNC | SIM_SPACE | SIM_NAMES,
	SIM_ANY = 127,
};

struct sim_fault {
	unsigned calls;	  /* which calls count: enum sim_call, or-ed */
	const char *path; /* only on files whose path contains this; NULL = all. Borrowed until the fault is replaced */
	uint64_t nth;	  /* the nth of them from now, from 1, fails */
	int error;	  /* with this errno */
	bool sticky;	  /* and all later ones too; else once */
	bool partial;	  /* a pwrite or pread: it moves half of its bytes and says so; error follows at the next one (when not 0) */
};

/* Replaces the fault there was; NULL removes it. */
void sim_fault(struct sim *s, const struct sim_fault *f);
/* Calls that the present fault made fail or shortened. */
uint64_t sim_fault_hits(struct sim *s);

/* Bytes that fit (files and what is preallocated, in 4 KiB pages); above it ENOSPC. Default: no limit (statfs says 1 TiB). */
void sim_capacity(struct sim *s, uint64_t bytes);
/* Every sync takes this long, in real time: lets requests pile up behind a group commit. */
void sim_sync_delay(struct sim *s, int64_t ms);
/* Inverts bits of a file's byte, in both images: rot. False when there is no such byte. */
bool sim_flip(struct sim *s, const char *path, uint64_t offset, uint8_t mask);

/* ---- clock ----
 *
 * Both clocks run with the real ones until sim_freeze: so deadlines made of io_mono_ns fit pthread_cond_timedwait. Frozen, they move by
 * sim_advance and by sleeping only, and sleeping returns at once. */
void sim_set_now(struct sim *s, int64_t now_ms);
void sim_freeze(struct sim *s);
void sim_advance(struct sim *s, int64_t ms);
