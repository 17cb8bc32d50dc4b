/* cmd/cmd_cluster.c - what a varve that is one of many has beside its own parts: trust, the way to peers, who is there, the rings in force, and writes spread over them.
 *
 *     trust ─ link ─ roster ─ hints ─ cluster ─ query ─ rings (on change: roster and query are told) ─ finder      opened in this order, closed backwards
 *
 * Opened before the write endpoints, which stand on all of it. Without --hashrings.file, --hashrings or --peers there is none of it, and a node stores what it is sent.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "cluster/finder.h"
#include "cmd/cmd_int.h"

/* Every catalog knows of a block at the second audit after it went live at the latest. Without audits, or with rare ones, it is up to what nodes tell each other. */
enum { HANDOVER_MORE_MS = 60000, HANDOVER_MAX_MS = 2 * 3600000 };

static const struct {
	const char *name;
	unsigned roles;
} targets[] = {
	{"all", ROLE_ROUTE | ROLE_INGEST | ROLE_QUERY | ROLE_COMPACT},
	{"route", ROLE_ROUTE},
	{"ingest", ROLE_INGEST},
	{"query", ROLE_QUERY},
	{"compact", ROLE_COMPACT},
};

errc server_roles(const char *text, unsigned *roles, struct err *err)
{
	*roles = 0;
	for (const char *p = text; *p;) {
		size_t n = strcspn(p, ","), k = 0;
		while (k < sizeof targets / sizeof *targets && (strlen(targets[k].name) != n || memcmp(targets[k].name, p, n) != 0))
			k++;
		if (k == sizeof targets / sizeof *targets)
			return err_set(err, ERR_INVALID, "--target=%s: '%.*s' is none of all, route, ingest, query, compact", text, (int)n, p);
		*roles |= targets[k].roles;
		p += n + (p[n] == ',');
	}
	return *roles ? OK : err_set(err, ERR_INVALID, "--target is empty: all, or a comma list of route, ingest, query, compact");
}

int64_t server_ring_remember_ms(const struct server_flags *f)
{
	return f->ring_remember_set ? f->ring_remember_ms : f->head_block_range_ms + f->head_cut_delay_ms + 3600000;
}

bool server_has_rings(const struct server_flags *f)
{
	return f->hashrings_file || f->hashrings || f->peers.n > 0;
}

errc server_cluster_check(struct server_flags *f, struct err *err)
{
	errc rc = OK;
	enum ring_algorithm algorithm;
	bool rings = server_has_rings(f);
	TRY(server_roles(f->target, &f->roles, err));
	CHECK(f->peers.n == 0 || (!f->hashrings_file && !f->hashrings), ERR_INVALID,
		"--peers makes the rings: --hashrings.file and --hashrings exclude it");
	CHECK(f->peers_gone_after_ms >= 1000 && f->drain_timeout_ms >= 1000 && f->drain_quiet_ms >= 0, ERR_INVALID,
		"--peers.gone-after and --drain.timeout must be at least 1s");
	CHECK(!f->hashrings_file || !f->hashrings, ERR_INVALID, "--hashrings.file and --hashrings exclude each other");
	CHECK(f->replication_factor >= 1 && f->replication_factor <= LIMIT_RING_FACTOR, ERR_INVALID, "--replication-factor must be between 1 and %d",
		LIMIT_RING_FACTOR);
	CHECK(f->replication_quorum <= f->replication_factor, ERR_INVALID,
		"--replication.quorum=%" PRIu64 " is more than --replication-factor=%" PRIu64, f->replication_quorum, f->replication_factor);
	CHECK(ring_algorithm_parse(f->hashrings_algorithm, &algorithm), ERR_INVALID, "--hashrings.algorithm must be ketama or hashmod");
	CHECK(f->hashrings_port <= 65535, ERR_INVALID, "--hashrings.port must be at most 65535");
	CHECK(f->peer_timeout_ms >= 10 && f->peer_timeout_ms <= 120000, ERR_INVALID, "--peer.timeout must be between 10ms and 2m");
	CHECK(f->peer_max_inflight >= MIB, ERR_INVALID, "--peer.max-inflight must be at least 1MiB");
	CHECK(f->hints_max_size >= MIB && f->hints_rate >= KIB, ERR_INVALID, "--hints.max-size must be at least 1MiB, --hints.rate at least 1KiB");
	CHECK(!f->hints_max_age_set || f->hints_max_age_ms > 0, ERR_INVALID, "--hints.max-age must be more than 0");
	CHECK(!f->peer_tls_cert_file == !f->peer_tls_key_file, ERR_INVALID, "--peer.tls-cert-file and --peer.tls-key-file go together");
	CHECK(rings || f->roles & ROLE_INGEST || !(f->roles & ROLE_ROUTE), ERR_INVALID,
		"--target=%s routes and does not store: it needs to know who does (--hashrings.file, --hashrings or --peers)", f->target);
	CHECK(rings || !f->local_endpoint, ERR_INVALID,
		"--hashrings.local-endpoint says who this node is in the rings: --hashrings.file or --peers is missing");
	CHECK(rings || f->replication_factor == 1, ERR_INVALID,
		"--replication-factor=%" PRIu64 " needs rings (--hashrings.file, --hashrings or --peers)", f->replication_factor);
fail:
	return rc;
}

/* ---- callbacks of the parts ---- */

static void send_frame(void *arg, const struct cluster_send *c)
{
	struct server *s = arg;
	struct err err = {0};
	const struct link_call call = {
		.address = c->address,
		.method = "POST",
		.target = PEER_WRITE_PATH,
		.content_type = PEER_CONTENT_TYPE,
		.body = c->body,
		.deadline_mono_ns = c->deadline_mono_ns,
		.max_answer_bytes = c->max_answer_bytes,
		.done = c->done,
		.arg = c->arg,
	};
	errc rc = link_send(s->link, &call, &err);
	if (rc != OK)
		c->done(c->arg, rc, 0, (struct span){"", 0}, &err);
}

static void rings_changed(void *arg, struct ring_set *was, struct ring_set *now)
{
	struct server *s = arg;
	uint32_t node;
	roster_rings(s->roster, now);
	if (s->query)
		query_rings(s->query, now);
	bool before = was && ring_set_find(was, s->self, &node), after = ring_set_find(now, s->self, &node);
	if (s->flags->roles & ROLE_INGEST && !after && (before || !was))
		log_warn(was ? "this node is in no hashring any more: it keeps, ships and answers for what it has"
			     : "this node is in no hashring: nobody sends it anything",
			LSPAN("local_endpoint", s->self), LSTR("flag", "--hashrings.local-endpoint"));
	else if (after && was && !before)
		log_info("this node is in the hashrings now", LSPAN("local_endpoint", s->self));
}

/* A node that is drained is asked no more, and what it put into the bucket last may not be known here. */
static void node_changed(void *arg, const struct roster_node *n)
{
	struct server *s = arg;
	if (n->state == NODE_DRAINED && !n->self && s->catalog)
		atomic_store(&s->audit_now, true); /* within a second */
}

/* What the hints ask of the others. */
static errc hints_send(void *arg, const struct link_call *c, struct err *err)
{
	return link_send(arg, c, err);
}

static errc hints_nodes(void *arg, struct arena *arena, struct roster_node **out, size_t *n, struct err *err)
{
	return roster_nodes(arg, arena, out, n, err);
}

static errc hints_check(void *arg, const struct http_request *r, struct err *err)
{
	return link_check(arg, r, err);
}

/* ---- open and close ---- */

static struct http_client_config client_of(const struct server_flags *f)
{
	return (struct http_client_config){.connect_timeout_ms = f->peer_timeout_ms,
		.ca_file = f->peer_tls_ca_file,
		.cert_file = f->peer_tls_cert_file,
		.key_file = f->peer_tls_key_file,
		.server_name = f->peer_tls_server_name};
}

/* By then what was taken is in a block. */
static int64_t until_blocks_ms(const struct server_flags *f)
{
	return f->head_block_range_ms + f->head_cut_delay_ms + 3600000;
}

errc server_rings_open(struct server *s, struct err *err)
{
	const struct server_flags *f = s->flags;
	if (!server_has_rings(f))
		return OK;
	enum ring_algorithm algorithm;
	bool known = ring_algorithm_parse(f->hashrings_algorithm, &algorithm);
	ASSERT(known);
	const struct ring_file_config cfg = {
		.path = f->hashrings_file,
		.text = f->hashrings,
		.options = {.algorithm = algorithm, .replication_factor = (uint32_t)f->replication_factor},
		.on_change = rings_changed,
		.arg = s,
	};
	errc rc = ring_file_open(&cfg, &s->rings, err);
	if (rc == OK && f->peers.n > 0)
		rc = finder_open(&(struct finder_config){.names = f->peers.v,
					 .n_names = f->peers.n,
					 .factor = (uint32_t)f->replication_factor,
					 .gone_after_ms = f->peers_gone_after_ms,
					 .file = s->peers_path,
					 .roster = s->roster,
					 .rings = s->rings},
			&s->finder, err);
	return rc;
}

errc server_cluster_open(struct server *s, struct err *err)
{
	const struct server_flags *f = s->flags;
	errc rc = OK;
	if (!server_has_rings(f))
		return OK;
	s->self = span_cstr(f->local_endpoint ? f->local_endpoint : "");
	if (f->replication_quorum > 0 && f->replication_quorum != f->replication_factor / 2 + 1)
		log_warn("the write quorum is not the majority", LU64("quorum", f->replication_quorum),
			LU64("replication_factor", f->replication_factor),
			LSTR("what", f->replication_quorum <= f->replication_factor / 2
					     ? "a sample is acknowledged that fewer nodes have than may be lost: --replication.quorum"
					     : "fewer nodes may be down than replication is paid for: --replication.quorum"));
	const struct trust_config trust = {
		.secret_file = f->peer_secret_file, .certificates = f->peer_tls_cert_file != NULL, .name = f->peer_tls_name};
	TRY(trust_open(&trust, &s->trust, err));
	const struct link_config link = {
		.client = client_of(f),
		.tls = f->peer_tls_cert_file || f->peer_tls_ca_file,
		.port = (uint16_t)f->hashrings_port,
		.trust = s->trust,
	};
	TRY(link_open(&link, &s->link, err));
	const struct roster_config roster = {
		.file = s->roster_path,
		.self = s->self,
		.id = s->dir.node[0] ? s->dir.node : NULL,
		.targets = f->target,
		.link = s->link,
		.remember_ms = server_ring_remember_ms(f),
		.on_change = node_changed,
		.arg = s,
	};
	TRY(roster_open(&roster, &s->roster, err));
	const struct hints_config hints = {
		.dir = f->roles & ROLE_INGEST ? s->hints_dir : NULL,
		.self = s->self,
		.max_bytes = f->hints_max_size,
		.max_age_ms = f->hints_max_age_set ? f->hints_max_age_ms : until_blocks_ms(f),
		.rate = f->hints_rate,
		.remember_ms = roster.remember_ms,
		.lz4 = strcmp(f->peer_compression, "lz4") == 0,
		.send = hints_send,
		.link = s->link,
		.nodes = hints_nodes,
		.roster = s->roster,
		.check = hints_check,
		.trust = s->trust,
	};
	TRY(hints_open(&hints, &s->hints, err));
	const struct cluster_config cluster = {
		.send = send_frame,
		.sender = s,
		.lz4 = strcmp(f->peer_compression, "lz4") == 0,
		.quorum = (uint32_t)f->replication_quorum,
		.max_peer_bytes = f->peer_max_inflight,
		.on_missed = hints_missed,
		.missed_arg = s->hints,
	};
	TRY(cluster_open(&cluster, &s->cluster, err));
fail:
	return rc;
}

void server_cluster_close(struct server *s)
{
	if (s->link)
		link_cancel(s->link); /* who waits for a peer does so no longer */
	repair_close(s->repair);      /* asks peers, and stores what they answer */
	if (s->cluster)
		cluster_close(s->cluster);
	finder_close(s->finder);
	ring_file_close(s->rings);
	hints_close(s->hints);
	roster_close(s->roster);
	link_close(s->link);
	trust_close(s->trust);
}

void server_cluster_ready(struct server *s)
{
	if (s->roster && roster_said(s->roster) == NODE_JOINING)
		roster_say(s->roster, NODE_ACTIVE);
}

void server_cluster_tick(struct server *s)
{
	if (s->trust)
		trust_tick(s->trust);
	if (s->rings && s->ingest)
		server_rates_tick(s);
}

/* ---- reads ---- */

int64_t server_handover_ms(const struct server_flags *f)
{
	int64_t audit_ms = f->bucket_audit_interval_ms;
	if (!server_has_rings(f))
		return 0;
	return audit_ms > 0 && audit_ms < HANDOVER_MAX_MS / 2 ? 2 * audit_ms + HANDOVER_MORE_MS : HANDOVER_MAX_MS;
}

/* What a read needs of a log that is still replayed it would miss without a word. */
static bool head_whole(void *arg)
{
	struct server *s = arg;
	int phase = atomic_load(&s->phase);
	return phase == PHASE_READY || phase == PHASE_STOPPING;
}

bool server_fleet(struct server *s, struct query_fleet *out)
{
	const struct server_flags *f = s->flags;
	*out = (struct query_fleet){
		.roster = s->roster,
		.nodes = roster_nodes,
		.link = s->link,
		.url = link_url,
		.trust = s->trust,
		.sign = trust_sign,
		.check = link_check,
		.whole = s->head ? head_whole : NULL,
		.whole_arg = s,
		.client = client_of(f),
		.peer_timeout_ms = f->query_peer_timeout_ms,
		.remember_ms = server_ring_remember_ms(f),
		.quorum = (uint32_t)f->replication_quorum,
	};
	return s->roster != NULL;
}

/* ---- /-/ring ---- */

static void put_text(struct buf *out, struct span text)
{
	buf_printf(out, "\"");
	for (size_t i = 0; i < text.n; i++) {
		uint8_t c = (uint8_t)text.p[i];
		if (c == '"' || c == '\\')
			buf_printf(out, "\\%c", c);
		else if (c < 0x20)
			buf_printf(out, "\\u%04x", c);
		else
			buf_put(out, &text.p[i], 1);
	}
	buf_printf(out, "\"");
}

/* brief: without the rings themselves, as nodes ask each other every second. */
static void ring_answer(struct server *s, struct http_request *r, bool brief)
{
	struct ring_file_status st;
	struct ring_set *set = ring_file_current(s->rings);
	struct buf out;
	buf_init(&out, 4 * LIMIT_RING_FILE_BYTES);
	ring_file_status(s->rings, &st);
	buf_printf(&out, "{\"epoch\":");
	if (set)
		buf_printf(&out, "\"%016" PRIx64 "\"", ring_set_epoch(set));
	else
		buf_printf(&out, "null");
	buf_printf(&out, ",\"sequence\":%" PRIu64 ",\"since_ms\":%" PRId64 ",\"good\":%s,\"error\":", st.sequence, st.since_ms,
		st.good ? "true" : "false");
	put_text(&out, span_cstr(st.good ? "" : st.error));
	buf_printf(&out, ",\"replication_factor\":%" PRIu64 ",\"quorum\":%" PRIu64 ",\"local_endpoint\":", s->flags->replication_factor,
		s->flags->replication_quorum ? s->flags->replication_quorum : s->flags->replication_factor / 2 + 1);
	put_text(&out, s->self);
	buf_printf(&out, ",");
	roster_json(s->roster, &out);
	if (!brief) {
		struct span json = set ? ring_set_json(set) : SPAN("null");
		buf_printf(&out, ",\"hashrings\":");
		buf_put(&out, json.p, json.n);
		if (s->finder) {
			buf_printf(&out, ",");
			finder_json(s->finder, &out);
		}
	}
	buf_printf(&out, "}\n");
	if (out.failed)
		http_error(r, ERRID_OVERLOADED, "no memory for the rings");
	else
		http_answer(r, 200, "application/json", span_of(out.p, out.n));
	buf_free(&out);
	ring_set_unref(set);
}

void server_ring_get(void *arg, struct http_request *r)
{
	ring_answer(arg, r, http_parse_params(r, NULL) == OK && span_is(http_param(r, "hashrings", 0), "0"));
}

void server_ring_put(void *arg, struct http_request *r)
{
	struct server *s = arg;
	struct err err = {0};
	errc rc = link_check_order(s->trust, r, &err);
	if (rc == OK && s->finder)
		rc = err_id(&err, ERRID_BAD_REQUEST, ERR_INVALID, "the rings of this node are made of --peers");
	else if (rc == OK) {
		rc = ring_file_offer(s->rings, "PUT /-/ring", http_body(r), &err);
		if (rc != OK)
			err.id = errid_text(rc == ERR_NOMEM ? ERRID_OVERLOADED : ERRID_BAD_REQUEST);
	}
	if (rc != OK)
		http_error_of(r, &err);
	else
		ring_answer(s, r, false);
}
