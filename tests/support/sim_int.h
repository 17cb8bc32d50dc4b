/* tests/support/sim_int.h - the simulated disk itself (sim_disk.c), the calls on it (sim_ops.c), and what a test steers (sim_life.c). */
#pragma once
#include <pthread.h>
#include "tests/support/sim.h"

enum { PAGE = 4096, SECTOR = 512 };
#define NO_INODE UINT32_MAX

struct image {
	struct page **v; /* NULL = zeros; pages are shared between images and counted */
	size_t n;
	uint64_t size;
};

struct entry {
	char *name;
	uint32_t ino;
};

struct entries {
	struct entry *v;
	size_t n;
};

struct inode {
	bool is_dir;
	struct image cached, durable;
	size_t *dirty; /* indices of pages written since the last sync */
	size_t n_dirty, cap_dirty;
	uint8_t *is_dirty; /* per page of cached */
	bool size_dirty;
	bool has_lost;	    /* a failed sync left data in cached that is not dirty */
	uint64_t allocated; /* end of what fallocate reserved */
	int64_t mtime_ms;
	struct entries now, synced; /* directories */
};

/* A name's content after a change: directory, name, and what it names then. */
struct slot {
	uint32_t dir;
	char *name;
	uint32_t ino; /* NO_INODE: nothing */
};

/* One atomic change of directories that is not durable yet. A rename within or between directories has two slots. */
struct change {
	uint32_t owner; /* the directory whose fsync makes it durable */
	struct slot slot[2];
	int n_slots;
};

struct disk {
	struct inode *v; /* by number; 0 is the root directory */
	uint32_t n;
	struct change *pending; /* in order */
	size_t n_pending, cap_pending;
	uint64_t used_pages;
};

enum op_kind { OP_CREATE, OP_WRITE, OP_TRUNCATE, OP_ALLOCATE, OP_SYNC, OP_RENAME, OP_LINK, OP_UNLINK, OP_MKDIR, OP_RMDIR };

/* One operation, with all that is needed to do it again on a copy of the disk. */
struct op {
	enum op_kind kind;
	bool lost;	 /* OP_SYNC: it failed, and the data is lost to later syncs */
	uint32_t ino;	 /* the file; of CREATE and MKDIR: the number it got */
	uint32_t dir[2]; /* directory of the name(s) */
	char *name[2];
	uint64_t off, n;
	void *data;
	char *path; /* for messages */
};

void *xalloc(size_t n); /* zeroed; ends the program when memory is out */
char *xcopy(const char *s);
void *xgrow(void *v, size_t n, size_t *cap, size_t size);

struct disk *disk_new(void);
struct disk *disk_clone(const struct disk *d);
void disk_free(struct disk *d);
void disk_do(struct disk *d, const struct op *op);
size_t disk_read(const struct inode *f, void *out, size_t n, uint64_t off);
uint32_t disk_lookup(const struct disk *d, uint32_t dir, const char *name);
unsigned disk_links(const struct disk *d, uint32_t ino);
/* Turns the disk into what a power cut leaves; everything is durable then. */
void disk_crash(struct disk *d, enum sim_loss loss, uint64_t seed);
/* What is there counts as durable. */
void disk_settle(struct disk *d);
bool disk_flip(struct inode *f, uint64_t off, uint8_t mask);
/* Forgets the data of inodes that no name, pending change or descriptor leads to. */
void disk_collect(struct disk *d, const bool *open);
/* Counts used_pages: files with a name or a descriptor. */
void disk_account(struct disk *d, const bool *open);
/* Pages that the disk holds for a file, preallocated ones too. */
uint64_t disk_file_pages(const struct inode *f);

uint64_t sim_random_next(uint64_t *state);

enum {
	FD_BASE = 1 << 20, /* far from real descriptors, so that mixing the two shows */
	NAME_BYTES = 256,
};

struct file {
	bool used;
	bool dead; /* its descriptor was open when the power failed: the number never comes back */
	uint32_t ino;
	int flags;
	char *path;
	bool locked;
};

struct sim {
	pthread_mutex_t mu; /* guards everything below */
	struct disk *disk;
	struct file *files; /* by fd - FD_BASE */
	size_t n_files, cap_files;
	uint64_t ops, syncs;
	uint64_t capacity_pages;
	int64_t sync_delay_ms;
	uint64_t random;

	uint64_t power_left; /* operations until the power fails; UINT64_MAX = it stays on */
	bool off;

	struct sim_fault fault;
	uint64_t fault_seen, fault_hits;
	bool fault_error_due; /* after a partial transfer */

	bool frozen;
	int64_t now_offset_ms, mono_offset_ns; /* on the real clocks; frozen: the clocks themselves */

	struct sim_tape *tape;
};

struct sim_tape {
	struct disk *start;
	struct op *v;
	size_t n, cap;
	struct disk *at; /* the disk after the first `done` operations */
	size_t done;
	uint64_t done_ops; /* of them: failed syncs are on the tape without a number */
};

#define NEVER UINT64_MAX

extern struct sim *sim_current;
extern const struct io_ops sim_table;
uint32_t sim_find(const struct disk *d, const char *path);
/* After a name or descriptor went away: room comes back. */
void sim_account_locked(struct sim *s);
