/* cmd/cmd_int.h - what the files of cmd/ share: the parsed flags, the opened parts, and one entry per subcommand. */
#pragma once
#include <stdatomic.h>
#include "base/arena.h"
#include "base/config.h"
#include "bucket/bucket.h"
#include "bucket/catalog.h"
#include "bucket/feed.h"
#include "cluster/cluster.h"
#include "cluster/finder.h"
#include "cluster/hints.h"
#include "cluster/link.h"
#include "cluster/ring_file.h"
#include "cluster/roster.h"
#include "head/head.h"
#include "ingest/ingest.h"
#include "ingest/repair.h"
#include "net/net.h"
#include "query/query.h"
#include "shipper/shipper.h"
#include "wal/wal.h"

#define VARVE_VERSION "0.1.0"

enum exit_code { EXIT_CLEAN = 0, EXIT_USAGE = 1, EXIT_DAMAGED = 2, EXIT_STORAGE = 3 };

enum server_role { ROLE_ROUTE = 1, ROLE_INGEST = 2, ROLE_QUERY = 4, ROLE_COMPACT = 8 };

/* Every server flag; docs in cmd_flags.c. Strings live in the arena that flags_parse was given. */
struct server_flags {
	const char *data_dir, *http_address, *web_config_file;
	struct flag_list labels;
	const char *objstore_config_file, *objstore_config;
	const char *wal_sync;
	int64_t wal_sync_interval_ms;
	uint64_t wal_max_size, wal_segment_size;
	int64_t head_block_range_ms, head_cut_delay_ms, head_max_age_ms;
	bool head_cut_delay_set;
	uint64_t head_max_memory, head_shards, head_snapshot_tail;
	uint64_t exemplars_max, metadata_max;
	int64_t ingest_oldest_ms, ingest_future_ms;
	bool ingest_created_zero;
	uint64_t ingest_max_body, ingest_max_series, ingest_max_samples, ingest_max_inflight;
	uint64_t ingest_max_labels, ingest_max_label_name, ingest_max_label_value;
	uint64_t disk_reserve;
	bool disk_reserve_set;
	int64_t bucket_audit_interval_ms, catalog_snapshot_interval_ms, blocks_keep_local_ms;
	uint64_t cache_dir_size;
	uint64_t query_max_concurrency, query_max_samples, query_max_memory;
	int64_t query_timeout_ms, query_peer_timeout_ms;
	struct flag_list query_replica_labels;
	uint64_t http_threads, http_max_connections;
	int64_t http_idle_timeout_ms, http_request_timeout_ms, shutdown_grace_ms, flush_timeout_ms;
	const char *tenant_header, *tenant_certificate_field, *tenant_default, *tenant_split_label;
	int64_t tenant_delete_delay_ms;
	const char *limits_file;
	const char *log_level, *log_format;
	/* one of many (cmd_cluster.c) */
	const char *target;
	unsigned roles; /* of target */
	const char *hashrings_file, *hashrings, *hashrings_algorithm, *local_endpoint;
	uint64_t hashrings_port, replication_factor, replication_quorum;
	int64_t ring_remember_ms, peer_timeout_ms;
	bool ring_remember_set;
	const char *peer_compression, *peer_secret_file, *peer_tls_ca_file, *peer_tls_cert_file, *peer_tls_key_file, *peer_tls_server_name,
		*peer_tls_name;
	uint64_t peer_max_inflight;
	struct flag_list peers;
	int64_t peers_gone_after_ms, drain_quiet_ms, drain_timeout_ms;
	uint64_t hints_max_size, hints_rate;
	int64_t hints_max_age_ms;
	bool hints_max_age_set;
	uint64_t repair_rate;
};

/* The server's table (static storage); *n its length. */
struct flag *server_flag_table(struct server_flags *f, size_t *n);
/* Ranges and cross-checks that a table can't say: one sentence that names the flag. */
CHECKED errc server_flags_check(struct server_flags *f, struct err *err);
/* --label k=v pairs, sorted, checked. Without any, a node of a ring has varve_node=<local endpoint>: no two nodes write blocks of equal labels. */
#define NODE_LABEL "varve_node"
CHECKED errc server_labels(const struct server_flags *f, struct arena *arena, struct labels *out, struct err *err);

/* ---- the data directory ---- */
struct data_dir {
	const char *path;
	int lock_fd;
	char node[ULID_TEXT_BYTES + 1]; /* this node's id, made once */
};
/* Creates, locks, checks the format version. ERR_AGAIN: another process has it; ERR_UNSUPPORTED: a newer format, untouched. */
CHECKED errc data_dir_open(const char *path, struct data_dir *out, struct err *err);
void data_dir_close(struct data_dir *d);

/* ---- the running server ---- */
enum server_phase { PHASE_STARTING, PHASE_REPLAY, PHASE_READY, PHASE_STOPPING, PHASE_FAILED };

struct leave;

struct server {
	/* constant after start */
	const struct server_flags *flags;
	struct arena arena; /* paths and labels, for the life of the server */
	struct data_dir dir;
	const char *wal_dir, *block_dir, *chunk_dir, *cache_dir, *bucket_default_dir, *catalog_path, *roster_path, *peers_path, *hints_dir,
		*feed_file;
	struct labels ext_labels;
	struct bucket *bucket;
	struct catalog *catalog;
	struct wal *wal;
	struct head *head;
	struct shipper *shipper;
	struct ingest *ingest;
	struct query *query;
	struct http_server *http;
	/* all NULL where there are no rings (cmd_cluster.c) */
	struct trust *trust;
	struct link *link;
	struct roster *roster;
	struct ring_file *rings;
	struct hints *hints;
	struct cluster *cluster;
	struct finder *finder; /* with --peers */
	struct span self;      /* --hashrings.local-endpoint */
	struct repair *repair; /* of every node that stores, also of one alone: it answers for its digests */
	struct feed *feed;     /* also NULL without a catalog (cmd_feed.c) */
	struct server_rates {
		uint64_t epoch; /* that ingest was told of; 0: none */
		int64_t said_ms;
	} rates; /* of the thread that ticks */

	atomic_int phase; /* enum server_phase */
	atomic_int exit_code;
	atomic_bool stopping;
	atomic_bool disk_low;
	atomic_bool left;		    /* drained: nobody sends it anything any more */
	atomic_uint_fast64_t peer_wrote_ms; /* monotonic: the last write of a peer */
	struct leave *leave;
	/* replay progress, written by the replaying thread */
	atomic_uint_fast64_t replay_first, replay_last, replay_now;
	int64_t started_ms;
	bool catalog_rebuilt;
	atomic_bool audit_now;
};

/* Wakes the main thread to stop with this code; any thread, first call wins. */
void server_stop(struct server *s, int exit_code);
/* Sets the ingest gate from phase and disk state: one place decides why writes are refused. */
void server_gate(struct server *s);

/* cmd_routes.c */
CHECKED errc server_listen(struct server *s, struct err *err);
CHECKED errc server_reload(struct server *s, struct err *err);
/* cmd_cluster.c: being one of many. */
CHECKED errc server_roles(const char *text, unsigned *roles, struct err *err); /* --target */
bool server_has_rings(const struct server_flags *f);
int64_t server_ring_remember_ms(const struct server_flags *f); /* --ring.remember */
CHECKED errc server_cluster_check(struct server_flags *f, struct err *err);
CHECKED errc server_cluster_open(struct server *s, struct err *err); /* nothing where there are no rings */
CHECKED errc server_rings_open(struct server *s, struct err *err);   /* last: who is told of rings is there */
bool server_fleet(struct server *s, struct query_fleet *out);	     /* the other nodes, for reads; false: there are none */
int64_t server_handover_ms(const struct server_flags *f); /* how long this node answers for a block that it shipped, and keeps it; 0: it is alone */
void server_cluster_close(struct server *s);
void server_cluster_ready(struct server *s); /* the log is replayed */
void server_cluster_tick(struct server *s);  /* twice a second */
/* cmd_rates.c: what part of the tenants' limits is this node's. */
void server_rates_tick(struct server *s); /* twice a second, from one thread */
void server_rates_hear(void *server, struct http_request *r);
void server_ring_get(void *server, struct http_request *r);
void server_ring_put(void *server, struct http_request *r);
/* cmd_leave.c: POST /-/drain. */
CHECKED errc server_leave_open(struct server *s, struct err *err);
void server_leave_close(struct server *s); /* after head and shipper were released */
void server_drain_get(void *server, struct http_request *r);
void server_drain_post(void *server, struct http_request *r);
void server_peer_write(void *server, struct http_request *r); /* ingest_peer_write, and when it was */
/* cmd_repair.c: replicas that hold the same again. */
CHECKED errc server_repair_open(struct server *s, struct err *err);
void server_repair_ready(struct server *s); /* the log is replayed */
/* cmd_feed.c: one picture of the bucket on all nodes. */
CHECKED errc server_feed_open(struct server *s, struct err *err);
void server_feed_close(struct server *s);
/* A catalog that was made anew begins with the newest snapshot in the bucket. false: there is none for it, an audit has to read everything. */
bool server_feed_fill(struct server *s);
void server_feed_get(void *server, struct http_request *r);
/* cmd_blocks.c: finds local block directories that the catalog does not know; tells the head when `tell_head`. */
CHECKED errc server_scan_blocks(struct server *s, bool tell_head, struct err *err);
/* cmd_background.c: disk watermark, audits, local rescans. */
CHECKED errc background_start(struct server *s, struct err *err);
void background_stop(struct server *s);
void background_audit_now(struct server *s);

/* cmd_tenant_delete.c */
CHECKED errc tenant_delete_start(struct server *s, struct err *err);
void tenant_delete_stop(void);
#define TENANT_DELETE_PATH "/-/peer/tenant-delete"
/* Everything of the tenant that was stored up to then: a job that survives restarts. tell: the other nodes of the rings do not know. */
CHECKED errc tenant_delete(struct server *s, struct span tenant, int64_t asked_ms, bool tell, struct err *err);
void tenant_delete_hear(void *server, struct http_request *r);
/* The block is of a tenant that is deleted: its directory need not wait until its cut is settled, for what a replay would bring back is deleted again. */
bool tenant_delete_covers(struct server *s, struct ulid block);
void tenant_route(void *server, struct http_request *r); /* GET, DELETE /-/tenants/NAME */

/* {"blocks":[...]}; shared by /-/flush and `varve bucket ls`. */
void blocks_json(const struct catalog_block *b, size_t n, struct buf *out);

/* Tells systemd (NOTIFY_SOCKET), if it listens. */
void notify_systemd(const char *state);

/* ---- subcommands: argv[0] is the subcommand's name; each returns the exit code ---- */
int cmd_server(int argc, char **argv);
int cmd_wal(int argc, char **argv);
int cmd_bucket(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_ring(int argc, char **argv);
int cmd_control(int argc, char **argv);
int cmd_drain(int argc, char **argv);
int cmd_digest(int argc, char **argv);
int cmd_tenants(int argc, char **argv);

/* "varve: <message>" on stderr; returns the code. */
int cmd_fail(int code, const struct err *err);
