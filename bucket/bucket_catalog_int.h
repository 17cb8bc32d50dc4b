/* bucket/bucket_catalog_int.h - what the files of the catalog share: connections, rows, transactions. */
#pragma once
#include <pthread.h>
#include <sqlite3.h>
#include "base/metrics.h"
#include "bucket/catalog.h"

enum { CATALOG_SCHEMA = 2, CATALOG_STATEMENTS = 64, CATALOG_IDLE_CONNECTIONS = 32, CATALOG_BUSY_MS = 15000 };

/* One SQLite connection, used by one thread at a time. Statements are prepared once per connection, found by the SQL's address. */
struct catalog_conn {
	sqlite3 *db;
	struct catalog *catalog; /* told of damage; NULL while the file is being opened */
	struct catalog_conn *next;
	struct {
		const char *sql;
		sqlite3_stmt *stmt;
	} stmts[CATALOG_STATEMENTS];
	size_t n_stmts;

	/* of the transaction that is open (bucket_catalog_feed.c) */
	uint64_t digest_step;
	int64_t live_step;
	uint64_t fed; /* number of its last change; 0: none */
	uint64_t n_fed;
	bool quiet; /* what changes is told to nobody: a catalog that is being filled */
};

struct catalog {
	char *path, *node; /* constant after open */
	bool read_only;

	/* Held for reading by every call, for writing while the file is swapped (catalog_reset). */
	pthread_rwlock_t file_lock;

	pthread_mutex_t mu;
	struct catalog_conn *idle; /* guarded by mu */
	size_t n_idle;
	bool damaged;	     /* guarded by mu */
	bool moved;	     /* guarded by mu: damaged because the file is not at its path */
	uint64_t generation; /* guarded by mu: resets so far */
	bool complete;	     /* guarded by mu: facts.complete */
	bool auditing;	     /* guarded by mu */
	bool audit_failed;   /* guarded by mu: the last one */
	char audit_error[ERR_MSG_BYTES];
	struct ulid feed; /* guarded by mu: the name of the file's feed */
	uint64_t fed;	  /* guarded by mu: number of its last change */
	uint64_t jumps,
		paid; /* guarded by mu: how often changes were passed over that only an audit finds, and how often that had been when the last one that was done began */
	void (*on_fed)(void *arg); /* guarded by mu, called with it held */
	void *on_fed_arg;
	pthread_cond_t audited; /* CLOCK_MONOTONIC */

	struct catalog_hidden *hidden; /* guarded by mu (bucket_catalog_hide.c) */

	struct metric *rebuilds, *row_errors, *announced;
};

void catalog_hidden_free(struct catalog *c);

/* Columns of blocks and local_blocks up to crc, in the schema's order: what is sealed and read together. */
#define BLOCK_COLUMNS                                                                                                                                \
	"ulid,tenant,min_time,max_time,span,resolution,level,state,reason,labels,source,samples,series,chunks,bytes,marked,missing,added_at,"        \
	"meta_size,meta_mtime,objects,index_size,symbols_off,series_off,postings_off,postings_table_off,meta_crc,crc"
enum block_column {
	COL_ULID,
	COL_TENANT,
	COL_MIN,
	COL_MAX,
	COL_SPAN,
	COL_RESOLUTION,
	COL_LEVEL,
	COL_STATE,
	COL_REASON,
	COL_LABELS,
	COL_SOURCE,
	COL_SAMPLES,
	COL_SERIES,
	COL_CHUNKS,
	COL_BYTES,
	COL_MARKED,
	COL_MISSING,
	COL_ADDED,
	COL_META_SIZE,
	COL_META_MTIME,
	COL_OBJECTS,
	COL_INDEX_SIZE,
	COL_SYMBOLS,
	COL_SERIES_OFF,
	COL_POSTINGS,
	COL_POSTINGS_TABLE,
	COL_META_CRC,
	COL_CRC,
	COL_EXTRA
};

/* Opens the file, makes or migrates the schema. `fresh`: there was no schema. */
CHECKED errc catalog_conn_open(struct catalog *c, bool *fresh, struct catalog_conn **out, struct err *err);
void catalog_conn_close(struct catalog_conn *conn);

/* A connection from the pool, with the file held; give it back on every path. */
CHECKED errc catalog_take(struct catalog *c, struct catalog_conn **conn, struct err *err);
void catalog_give(struct catalog *c, struct catalog_conn *conn);

/* The prepared statement of a static SQL text, reset. NULL with err set. */
sqlite3_stmt *catalog_stmt(struct catalog_conn *conn, const char *sql, struct err *err);
/* Steps a statement that gives no rows. */
CHECKED errc catalog_exec(struct catalog_conn *conn, sqlite3_stmt *st, struct err *err);
CHECKED errc catalog_run(struct catalog_conn *conn, const char *sql, struct err *err);
/* From SQLite's code: CORRUPT/NOTADB -> ERR_CORRUPT, FULL -> ERR_NOSPACE, BUSY -> ERR_AGAIN, else ERR_IO. */
errc catalog_error(struct catalog_conn *conn, const char *what, struct err *err);
/* Ends a transaction by rc: COMMIT when OK (its failure becomes the result), else ROLLBACK. */
CHECKED errc catalog_end(struct catalog_conn *conn, errc rc, struct err *err);

void catalog_bind_ulid(sqlite3_stmt *st, int at, struct ulid u);
void catalog_bind_span(sqlite3_stmt *st, int at, struct span s);
struct span catalog_column(sqlite3_stmt *st, int at); /* borrowed until the next step */

/* A row's checksum over BLOCK_COLUMNS, which are the statement's first. */
bool catalog_row_whole(sqlite3_stmt *st);
/* A fact's value, at most n bytes with its end; empty when there is none. */
CHECKED errc catalog_fact(struct catalog_conn *conn, const char *name, char *out, size_t n, struct err *err);
CHECKED errc catalog_fact_set(struct catalog_conn *conn, const char *name, const char *value, struct err *err);
/* Reads the row that `st` stands on (BLOCK_COLUMNS first), checking its CRC. ERR_CORRUPT marks the catalog as damaged. */
CHECKED errc catalog_row(struct catalog *c, sqlite3_stmt *st, struct arena *arena, struct catalog_block *b, struct err *err);
/* Marks the catalog as damaged; ERR_CORRUPT. */
errc catalog_row_bad(struct catalog *c, struct span ulid, struct err *err);
/* Computes and stores a row's CRC after it was written. table: "blocks" or "local_blocks". */
CHECKED errc catalog_seal(struct catalog_conn *conn, bool local, struct ulid u, struct err *err);

/* What a row is made of. */
struct catalog_put {
	const struct block_meta *meta;
	struct span json; /* meta.json as it stands in the bucket or directory */
	uint64_t bytes;
	enum block_state state;
	const char *reason;
	bool marked;
	uint64_t meta_size;
	int64_t meta_mtime;
	struct span objects; /* JSON, see the schema */
};
/* Is a meta.json that could be read one of the block that it lies with? */
CHECKED errc catalog_judge(struct ulid u, const struct block_meta *m, struct err *err);
bool catalog_state_parse(struct span s, enum block_state *out);
/* Appends one member of the text that column objects holds: '{' before the first, '}' behind the last are the caller's. */
void catalog_objects_add(struct buf *out, struct span rel_path, uint64_t size_bytes);
/* The same from a meta.json's own list; `meta_bytes`: of meta.json itself, 0 leaves it out. */
void catalog_objects_of(const struct block_meta *meta, uint64_t meta_bytes, struct buf *out);
/* Bits of a block's length; see the schema. */
unsigned catalog_span(int64_t mint, int64_t maxt);
/* Writes (or replaces) a row of blocks with its sources, or of local_blocks, and seals it. Inside a transaction. A bucket row's index ranges stay when
 * the meta.json is the same. */
CHECKED errc catalog_put_block(struct catalog *c, struct catalog_conn *conn, const struct catalog_put *p, struct err *err);
CHECKED errc catalog_put_local(struct catalog *c, struct catalog_conn *conn, const struct catalog_put *p, struct err *err);
/* A bucket row for a block whose meta.json can't be read: quarantined with the reason. Of `seen` bytes, meta_size, meta_mtime, objects and marked count. */
CHECKED errc catalog_put_bad(
	struct catalog *c, struct catalog_conn *conn, struct ulid u, const char *reason, const struct catalog_put *seen, struct err *err);

/* ---- the feed (bucket_catalog_feed.c) ---- */

/* What all catalogs should agree on about a block. Around everything that writes or removes a row of blocks, inside its transaction:
 *
 *     TRY(catalog_standing(conn, u, &was, err));
 *     ... the row ...
 *     TRY(catalog_changed(c, conn, u, &was, err));      // no different from before: nothing happens
 */
struct catalog_standing {
	enum block_state state; /* GONE: no row */
	bool marked;
	uint32_t meta_crc;
};
CHECKED errc catalog_standing(struct catalog_conn *conn, struct ulid u, struct catalog_standing *out, struct err *err);
/* The block's version, the digest, and (unless the connection is quiet) the feed. */
CHECKED errc catalog_changed(struct catalog *c, struct catalog_conn *conn, struct ulid u, const struct catalog_standing *was, struct err *err);
/* The row and its sources go. */
CHECKED errc catalog_drop_block(struct catalog_conn *conn, struct ulid u, struct err *err);

/* Of a file just made or migrated, in its transaction; and of any other when it is opened: the digest is made again, what can't be read gets a new name. */
CHECKED errc catalog_feed_new(struct catalog_conn *conn, struct err *err);
CHECKED errc catalog_feed_check(struct catalog_conn *conn, struct err *err);
/* The file's feed becomes the catalog's. */
CHECKED errc catalog_feed_load(struct catalog *c, struct catalog_conn *conn, struct err *err);
/* An audit that began when there had been so many jumps is done. */
CHECKED errc catalog_paid(struct catalog *c, struct catalog_conn *conn, uint64_t jumps, struct err *err);
/* Before a COMMIT, and after it or a ROLLBACK. */
CHECKED errc catalog_feed_note(struct catalog_conn *conn, struct err *err);
void catalog_feed_done(struct catalog_conn *conn, bool committed);
