/* cmd/cmd_flags.c - the server's flags: names are part of the contract with users (docs/operations.md). */
#include <stdio.h>
#include <stdlib.h>
#include <inttypes.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/tenant.h"
#include "cmd/cmd_int.h"

#define F(n, k, field, def, val, comm, text)                                                                                                         \
	{                                                                                                                                            \
		.name = n, .kind = k, .into = &f->field, .fallback = def, .value_name = val, .help = text, .common = comm                            \
	}

struct flag *server_flag_table(struct server_flags *f, size_t *n)
{
	const struct flag rows[] = {
		F("data-dir", FLAG_STRING, data_dir, "./data", "DIR", true,
			"Where the log, unshipped blocks, the catalog and (without a bucket of its own) the bucket live."),
		F("http.address", FLAG_STRING, http_address, "127.0.0.1:19291", "HOST:PORT", true,
			"Address to listen on for writes, reads and operations."),
		F("web.config.file", FLAG_STRING, web_config_file, NULL, "FILE", true,
			"Prometheus web configuration: TLS and basic auth. Re-read when it changes."),
		F("label", FLAG_LIST, labels, NULL, "NAME=VALUE", true,
			"External label of every series and block. Repeatable; tenant_id is always added."),
		F("objstore.config-file", FLAG_STRING, objstore_config_file, NULL, "FILE", true,
			"Object store as Thanos' YAML (type: S3 | FILESYSTEM). Without it: DATA-DIR/bucket."),
		F("objstore.config", FLAG_STRING, objstore_config, NULL, "YAML", false, "The same, inline."),
		F("wal.sync", FLAG_CHOICE, wal_sync, "ack", "ack|interval|os", true,
			"When a write is acknowledged: after fdatasync (ack), after write with a sync every --wal.sync-interval, or after write "
			"alone (os)."),
		F("wal.sync-interval", FLAG_DURATION_MS, wal_sync_interval_ms, "100ms", "DURATION", true,
			"With --wal.sync=interval: the most that a power cut may cost."),
		F("wal.max-size", FLAG_SIZE, wal_max_size, "8GiB", "SIZE", true, "Above it, windows that hold the oldest segments are cut early."),
		F("head.block-range", FLAG_DURATION_MS, head_block_range_ms, "2h", "DURATION", true,
			"Length of a window and of the block that it becomes; 1m to 24h."),
		F("head.cut-delay", FLAG_DURATION_MS, head_cut_delay_ms, NULL, "DURATION", true,
			"How long after its end, and after its last sample arrived, a window is cut. Default: the smaller of 15m and block-range/8."),
		F("head.max-age", FLAG_DURATION_MS, head_max_age_ms, "3h", "DURATION", true,
			"A window is cut at the latest this long after its first sample arrived."),
		F("head.max-memory", FLAG_SIZE, head_max_memory, NULL, "SIZE", true,
			"Memory of the head; above 80 % windows are cut early, above it writes get 503. Default: 75 % of the machine's or cgroup's."),
		F("exemplars.max", FLAG_U64, exemplars_max, "500000", "COUNT", true,
			"Exemplars kept in memory, of all tenants together; the newest of each stay, and each has an equal share. 0 keeps none."),
		F("ingest.oldest", FLAG_DURATION_MS, ingest_oldest_ms, "30d", "DURATION", true,
			"Samples older than this are refused; 0 accepts any age."),
		F("ingest.future", FLAG_DURATION_MS, ingest_future_ms, "10m", "DURATION", true, "Samples further ahead than this are refused."),
		F("ingest.created-timestamp-zero", FLAG_BOOL, ingest_created_zero, "false", "BOOL", true,
			"Store a 0 at the start timestamps that remote write 2.0 says, where a series has no samples yet."),
		F("ingest.max-body", FLAG_SIZE, ingest_max_body, "32MiB", "SIZE", true,
			"Largest write request as sent; decompressed at most 4 times this."),
		F("ingest.max-series-per-request", FLAG_U64, ingest_max_series, "200000", "COUNT", true, "Series in one write request."),
		F("limits.file", FLAG_STRING, limits_file, NULL, "FILE", true,
			"Limits of each tenant's requests, rate and series as Thanos' YAML, see docs/operations.md. Re-read when it changes."),
		F("tenant.header", FLAG_STRING, tenant_header, NULL, "NAME", false,
			"Header that names a request's tenant, asked before THANOS-TENANT and X-Scope-OrgID."),
		F("tenant.certificate-field", FLAG_CHOICE, tenant_certificate_field, NULL, "organization|organizationalUnit|commonName", false,
			"The subject of the client's certificate names its tenant, and no header does. Needs --web.config.file with client_ca_file."),
		F("tenant.default-id", FLAG_STRING, tenant_default, TENANT_DEFAULT, "NAME", false, "Tenant of requests that name none."),
		F("tenant.split-label", FLAG_STRING, tenant_split_label, NULL, "LABEL", true,
			"Series that have this label belong to the tenant that it names; they are stored without it."),
		F("tenant.delete-delay", FLAG_DURATION_MS, tenant_delete_delay_ms, "48h", "DURATION", false,
			"How long the blocks of a deleted tenant stay in the bucket, marked, before they are removed."),
		F("disk.reserve", FLAG_SIZE, disk_reserve, NULL, "SIZE", true,
			"Below this much free disk writes get 503 until there is room. Default: the larger of 1GiB and 3 %."),
		F("bucket.audit-interval", FLAG_DURATION_MS, bucket_audit_interval_ms, "15m", "DURATION", true,
			"How often the bucket is listed for blocks that others put or removed; 0 = never."),
		F("catalog.snapshot-interval", FLAG_DURATION_MS, catalog_snapshot_interval_ms, "15m", "DURATION", false,
			"With hashrings: how often one node writes what it knows of the bucket into the bucket, for new nodes; 0 = never."),
		F("cache.dir-size", FLAG_SIZE, cache_dir_size, "2GiB", "SIZE", true,
			"Bound of the on-disk cache of bucket indexes (DATA-DIR/cache)."),
		F("query.max-concurrency", FLAG_U64, query_max_concurrency, "20", "COUNT", true, "Reads that run at once; as many more wait."),
		F("query.timeout", FLAG_DURATION_MS, query_timeout_ms, "2m", "DURATION", true, "A read that takes longer is ended."),
		F("query.max-samples", FLAG_U64, query_max_samples, "50000000", "COUNT", true, "Samples in one remote-read answer (SAMPLES)."),
		F("query.max-memory", FLAG_SIZE, query_max_memory, "1GiB", "SIZE", true, "Memory of one read."),
		F("query.replica-label", FLAG_LIST, query_replica_labels, NULL, "NAME", true,
			"Label that replicas differ in: left out of answers, so that what several have is there once. Repeatable; varve_node always "
			"is one."),
		F("query.peer-timeout", FLAG_DURATION_MS, query_peer_timeout_ms, "10s", "DURATION", false,
			"How long other nodes may keep a read waiting; who has not answered then is missing."),
		F("target", FLAG_STRING, target, "all", "LIST", true,
			"What this process does: all, or a comma list of route (sends writes to those that store them; no data directory), ingest, "
			"query, "
			"compact."),
		F("hashrings.file", FLAG_STRING, hashrings_file, NULL, "FILE", true,
			"Who stores what: Thanos' hashrings.json. Re-read when it changes. Without it this node is alone."),
		F("hashrings", FLAG_STRING, hashrings, NULL, "JSON", false, "The same, inline."),
		F("peers", FLAG_LIST, peers, NULL, "NAME", true,
			"Instead of hashrings: those of dns+NAME:PORT, dnssrv+NAME or HOST:PORT that are ready are the ring. Repeatable, and lists "
			"with commas."),
		F("hashrings.local-endpoint", FLAG_STRING, local_endpoint, NULL, "HOST:PORT", true, "This node's address as the hashrings have it."),
		F("replication-factor", FLAG_U64, replication_factor, "1", "COUNT", true,
			"Nodes that store each series; a write is acknowledged when more than half of them have it."),
		F("peer.secret-file", FLAG_STRING, peer_secret_file, NULL, "FILE", true,
			"Secret that all nodes share: requests between them are signed with it. Re-read when it changes."),
		F("hints.max-size", FLAG_SIZE, hints_max_size, "1GiB", "SIZE", true,
			"What other nodes missed is kept for them up to this, all together; one alone comes to a half. Above it repair has to bring "
			"it."),
		F("log.level", FLAG_CHOICE, log_level, "info", "debug|info|warn|error", true, "Least severe lines that are written."),
		F("log.format", FLAG_CHOICE, log_format, "logfmt", "logfmt|json", true, "Form of the lines on stderr."),
		F("wal.segment-size", FLAG_SIZE, wal_segment_size, "128MiB", "SIZE", false, "Preallocated size of a log segment; 4KiB or more."),
		F("head.snapshot-tail", FLAG_SIZE, head_snapshot_tail, "8MiB", "SIZE", false,
			"A snapshot of the head is written when a start would have to read more of the log than this, and than a quarter of it; 0 = "
			"never."),
		F("head.shards", FLAG_U64, head_shards, "0", "COUNT", false, "Series table shards; 0 = from the cores."),
		F("ingest.max-samples-per-request", FLAG_U64, ingest_max_samples, "2000000", "COUNT", false, "Samples in one write request."),
		F("ingest.max-inflight", FLAG_SIZE, ingest_max_inflight, "512MiB", "SIZE", false,
			"Bytes of all requests being worked on; above it 503."),
		F("metadata.max", FLAG_U64, metadata_max, "20000", "COUNT", false,
			"Metric families of a tenant whose metadata is kept; the one not heard of for longest gives way. 0 keeps none."),
		F("ingest.max-labels", FLAG_U64, ingest_max_labels, "64", "COUNT", false, "Labels of a series."),
		F("ingest.max-label-name", FLAG_SIZE, ingest_max_label_name, "1KiB", "SIZE", false, "Length of a label name."),
		F("ingest.max-label-value", FLAG_SIZE, ingest_max_label_value, "4KiB", "SIZE", false, "Length of a label value."),
		F("blocks.keep-local", FLAG_DURATION_MS, blocks_keep_local_ms, "0s", "DURATION", false,
			"Keep shipped blocks on disk this long for faster reads."),
		F("http.threads", FLAG_U64, http_threads, "0", "COUNT", false, "Network threads; 0 = cores."),
		F("http.max-connections", FLAG_U64, http_max_connections, "4096", "COUNT", false, "Open client connections."),
		F("http.idle-timeout", FLAG_DURATION_MS, http_idle_timeout_ms, "1m", "DURATION", false,
			"A connection, or a body, may stand still this long."),
		F("http.request-timeout", FLAG_DURATION_MS, http_request_timeout_ms, "2m", "DURATION", false,
			"A request that is not complete after this is dropped."),
		F("hashrings.algorithm", FLAG_CHOICE, hashrings_algorithm, "ketama", "ketama|hashmod", false, "Of hashrings that name none."),
		F("hashrings.port", FLAG_U64, hashrings_port, "0", "PORT", false,
			"Connect to peers at this port whatever their addresses say (a Thanos file says :10901); 0 = as they say."),
		F("replication.quorum", FLAG_U64, replication_quorum, "0", "COUNT", false,
			"Nodes that must have a sample before it is acknowledged; 0 = more than half of --replication-factor."),
		F("ring.remember", FLAG_DURATION_MS, ring_remember_ms, NULL, "DURATION", false,
			"How long nodes that left the hashrings are asked by reads, unless they say that they are drained. Default: block-range + "
			"cut-delay + 1h."),
		F("peer.timeout", FLAG_DURATION_MS, peer_timeout_ms, "5s", "DURATION", false,
			"A write is answered by then with what its nodes have said."),
		F("peer.compression", FLAG_CHOICE, peer_compression, "lz4", "lz4|none", false, "Of what nodes send each other."),
		F("peer.max-inflight", FLAG_SIZE, peer_max_inflight, "64MiB", "SIZE", false,
			"Bytes on their way to one peer, not answered; what is above counts as not stored by it."),
		F("hints.max-age", FLAG_DURATION_MS, hints_max_age_ms, NULL, "DURATION", false,
			"What is kept for another node longer than this is in blocks, and goes. Default: block-range + cut-delay + 1h."),
		F("hints.rate", FLAG_SIZE, hints_rate, "8MiB", "SIZE", false, "Bytes a second that are brought to nodes that are back."),
		F("peer.tls-ca-file", FLAG_STRING, peer_tls_ca_file, NULL, "FILE", false,
			"Peers are spoken to by TLS, and their certificates checked by these."),
		F("peer.tls-cert-file", FLAG_STRING, peer_tls_cert_file, NULL, "FILE", false, "Certificate that is shown to peers."),
		F("peer.tls-key-file", FLAG_STRING, peer_tls_key_file, NULL, "FILE", false, "Its key."),
		F("peer.tls-name", FLAG_STRING, peer_tls_name, NULL, "NAME", false,
			"Only who shows a certificate of this DNS name is a peer; default: who shows one that --web.config.file takes."),
		F("peer.tls-server-name", FLAG_STRING, peer_tls_server_name, NULL, "NAME", false,
			"Name that peers' certificates must have; default: their host."),
		F("peers.gone-after", FLAG_DURATION_MS, peers_gone_after_ms, "1h", "DURATION", false,
			"A member that --peers names and that is silent for longer leaves the ring."),
		F("drain.quiet", FLAG_DURATION_MS, drain_quiet_ms, "15s", "DURATION", false,
			"A node that drains goes when no peer has sent it anything for so long."),
		F("drain.timeout", FLAG_DURATION_MS, drain_timeout_ms, "10m", "DURATION", false, "A drain that takes longer says so, and goes on."),
		F("repair.rate", FLAG_SIZE, repair_rate, "32MiB", "SIZE", false,
			"Bytes a second that a node takes from its peers at most when its open windows lack something that theirs have."),
		F("shutdown.grace", FLAG_DURATION_MS, shutdown_grace_ms, "10s", "DURATION", false, "How long running requests may end on SIGTERM."),
		F("flush.timeout", FLAG_DURATION_MS, flush_timeout_ms, "10m", "DURATION", false, "POST /-/flush gives up after this."),
	};
	static struct flag table[sizeof rows / sizeof rows[0]];
	memcpy(table, rows, sizeof rows);
	*n = sizeof rows / sizeof rows[0];
	return table;
}

#define HEADER_BYTES "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"

/* The least of the machine's memory and the cgroup's limit. */
static uint64_t memory_total(void)
{
	uint64_t total = 4 * GIB;
	struct arena a;
	arena_init(&a, MIB);
	struct span text;
	if (io_read_file("/proc/meminfo", 256 * KIB, &a, &text, NULL) == OK) {
		unsigned long long kb;
		if (sscanf(text.p, "MemTotal: %llu kB", &kb) == 1)
			total = kb * KIB;
	}
	static const char *const groups[] = {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"};
	for (size_t i = 0; i < 2; i++) {
		unsigned long long limit;
		if (io_read_file(groups[i], 4 * KIB, &a, &text, NULL) == OK && sscanf(text.p, "%llu", &limit) == 1 && limit > 0 && limit < total)
			total = limit;
	}
	arena_free(&a);
	return total;
}

errc server_flags_check(struct server_flags *f, struct err *err)
{
	if (f->head_block_range_ms < 60000 || f->head_block_range_ms > 86400000)
		return err_set(err, ERR_INVALID, "--head.block-range is %" PRId64 " ms, it must be between 1m and 24h", f->head_block_range_ms);
	if (!f->head_cut_delay_set) {
		f->head_cut_delay_ms = f->head_block_range_ms / 8;
		if (f->head_cut_delay_ms > 900000)
			f->head_cut_delay_ms = 900000;
	}
	if (f->wal_sync_interval_ms < 1 || f->wal_sync_interval_ms > 60000)
		return err_set(err, ERR_INVALID, "--wal.sync-interval must be between 1ms and 1m");
	if (f->wal_segment_size < LIMIT_WAL_SEGMENT_MIN || f->wal_segment_size > GIB)
		return err_set(err, ERR_INVALID, "--wal.segment-size must be between 4KiB and 1GiB");
	if (f->wal_max_size < 4 * f->wal_segment_size)
		return err_set(err, ERR_INVALID, "--wal.max-size must hold at least 4 segments (--wal.segment-size)");
	if (f->ingest_max_body < KIB || f->ingest_max_body > GIB)
		return err_set(err, ERR_INVALID, "--ingest.max-body must be between 1KiB and 1GiB");
	if (f->ingest_max_inflight < MIB)
		return err_set(err, ERR_INVALID, "--ingest.max-inflight must be at least 1MiB");
	if (f->ingest_max_series < 1 || f->ingest_max_series > 10000000)
		return err_set(err, ERR_INVALID, "--ingest.max-series-per-request must be between 1 and 10000000");
	if (f->ingest_max_samples < 1 || f->ingest_max_samples > 100000000)
		return err_set(err, ERR_INVALID, "--ingest.max-samples-per-request must be between 1 and 100000000");
	if (f->ingest_max_labels < 1 || f->ingest_max_labels > LIMIT_LABELS_DECODE)
		return err_set(err, ERR_INVALID, "--ingest.max-labels must be between 1 and %d", LIMIT_LABELS_DECODE);
	if (f->ingest_max_label_name < 1 || f->ingest_max_label_name > 64 * KIB || f->ingest_max_label_value < 1 || f->ingest_max_label_value > MIB)
		return err_set(err, ERR_INVALID, "--ingest.max-label-name must be at most 64KiB and --ingest.max-label-value at most 1MiB");
	if (f->exemplars_max > LIMIT_EXEMPLARS || f->metadata_max > LIMIT_METADATA_FAMILIES)
		return err_set(err, ERR_INVALID, "--exemplars.max must be at most %d and --metadata.max at most %d", LIMIT_EXEMPLARS,
			LIMIT_METADATA_FAMILIES);
	if (f->query_max_concurrency < 1 || f->query_max_concurrency > 1024)
		return err_set(err, ERR_INVALID, "--query.max-concurrency must be between 1 and 1024");
	if (f->query_peer_timeout_ms < 10 || f->query_peer_timeout_ms > 600000)
		return err_set(err, ERR_INVALID, "--query.peer-timeout must be between 10ms and 10m");
	if (f->query_replica_labels.n > LIMIT_QUERY_REPLICA_LABELS)
		return err_set(err, ERR_INVALID, "--query.replica-label may be given %d times at most", LIMIT_QUERY_REPLICA_LABELS);
	if (f->http_max_connections < 1 || f->http_max_connections > 1000000 || f->http_threads > 1024 || f->head_shards > 4096)
		return err_set(err, ERR_INVALID, "--http.max-connections, --http.threads or --head.shards is out of its range");
	if (f->objstore_config_file && f->objstore_config)
		return err_set(err, ERR_INVALID, "--objstore.config-file and --objstore.config exclude each other");
	if (f->tenant_header && strspn(f->tenant_header, HEADER_BYTES) != strlen(f->tenant_header))
		return err_set(err, ERR_INVALID, "--tenant.header=%s is no name of a header", f->tenant_header);
	if (!tenant_valid(span_cstr(f->tenant_default)))
		return err_set(err, ERR_INVALID, "--tenant.default-id=%s is no tenant's name: [A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", f->tenant_default);
	if (f->tenant_split_label && strcmp(f->tenant_split_label, "__name__") == 0)
		return err_set(err, ERR_INVALID, "--tenant.split-label=__name__: series would be stored without their names");
	if (f->tenant_certificate_field && !f->web_config_file)
		return err_set(err, ERR_INVALID, "--tenant.certificate-field needs --web.config.file, which asks clients for certificates");
	if (f->head_max_memory == 0)
		f->head_max_memory = memory_total() / 4 * 3;
	if (f->head_max_memory < 16 * MIB)
		return err_set(err, ERR_INVALID, "--head.max-memory must be at least 16MiB");
	errc rc = server_cluster_check(f, err);
	if (rc != OK)
		return rc;
	struct arena a;
	arena_init(&a, MIB);
	struct labels l;
	rc = server_labels(f, &a, &l, err);
	arena_free(&a);
	return rc;
}

errc server_labels(const struct server_flags *f, struct arena *arena, struct labels *out, struct err *err)
{
	struct label *v = arena_alloc(arena, (f->labels.n + 1) * sizeof *v);
	if (!v)
		return err_set(err, ERR_NOMEM, "no memory for labels");
	uint32_t n = 0;
	for (size_t i = 0; i < f->labels.n; i++) {
		const char *text = f->labels.v[i], *eq = strchr(text, '=');
		if (!eq || eq == text || eq[1] == 0)
			return err_set(err, ERR_INVALID, "--label=%s: write it as NAME=VALUE", text);
		struct span name = span_of(text, (size_t)(eq - text)), value = span_cstr(eq + 1);
		/* Thanos users write --label='replica="a"'; the quotes are not part of the value. */
		if (value.n >= 2 && value.p[0] == '"' && value.p[value.n - 1] == '"')
			value = span_of(value.p + 1, value.n - 2);
		if (span_is(name, "tenant_id"))
			return err_set(err, ERR_INVALID, "--label=%s: tenant_id is set from each request's tenant", text);
		if (span_is(name, "__name__"))
			return err_set(
				err, ERR_INVALID, "--label=%s: external labels win over a series' own, every metric would have this name", text);
		if (!span_is_utf8(name) || !span_is_utf8(value) || value.n == 0)
			return err_set(err, ERR_INVALID, "--label=%s: name and value must be UTF-8 and not empty", text);
		for (uint32_t k = 0; k < n; k++)
			if (span_eq(v[k].name, name))
				return err_set(err, ERR_INVALID, "--label=%s: the label is given twice", text);
		v[n++] = (struct label){name, value};
	}
	if (n == 0 && server_has_rings(f) && f->local_endpoint)
		v[n++] = (struct label){SPAN(NODE_LABEL), span_cstr(f->local_endpoint)};
	*out = (struct labels){v, n};
	labels_sort(*out);
	return OK;
}
