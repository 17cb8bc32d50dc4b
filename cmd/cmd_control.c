/* cmd/cmd_control.c - `varve control`: the ring controller as a process: its flags, its small server, its signals.
 *
 * Flags of thanos-receive-controller keep their names, so that a Deployment of it needs another image and two dashes. What that program would do by
 * --allow-only-ready-replicas, --allow-dynamic-scaling, --annotate-pods-on-change and --scale-timeout is what this one always does, or needs not; they are
 * not taken, and did-you-mean says what is.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "cluster/control.h"
#include "cmd/cmd_int.h"

struct control_flags {
	struct control_config cfg;
	const char *http_address, *web_config_file, *manual, *algorithm, *log_level, *log_format;
	uint64_t port, factor;
};

/* ---- the server ---- */

static void healthy(void *arg, struct http_request *r)
{
	(void)arg;
	http_answer(r, 200, NULL, SPAN("varve control is healthy.\n"));
}

static void ready(void *arg, struct http_request *r)
{
	char why[ERR_MSG_BYTES];
	if (control_ready(arg, why, sizeof why))
		http_answer(r, 200, NULL, SPAN("varve control is ready.\n"));
	else
		http_error(r, ERRID_NOT_READY, "%s", why);
}

static void answer(struct http_request *r, struct buf *out, const char *type)
{
	if (out->failed)
		http_error(r, ERRID_OVERLOADED, "no memory for the answer");
	else
		http_answer(r, 200, type, span_of(out->p, out->n));
	buf_free(out);
}

static void metrics(void *arg, struct http_request *r)
{
	(void)arg;
	struct buf out;
	buf_init(&out, 64 * MIB);
	metrics_write(&out);
	answer(r, &out, "text/plain; version=0.0.4; charset=utf-8");
}

static void members(void *arg, struct http_request *r)
{
	struct buf out;
	buf_init(&out, 64 * MIB);
	control_status_json(arg, &out);
	answer(r, &out, "application/json");
}

static void ring(void *arg, struct http_request *r)
{
	struct buf out;
	buf_init(&out, 2 * LIMIT_RING_FILE_BYTES);
	control_ring_json(arg, &out);
	if (out.n == 0 && !out.failed)
		http_error(r, ERRID_NOT_READY, "there is no ring yet; GET /-/members says what is waited for");
	else {
		answer(r, &out, "application/json");
		return;
	}
	buf_free(&out);
}

static errc listen_http(const struct control_flags *f, struct control *c, struct http_server **out, struct err *err)
{
	const struct http_route routes[] = {
		{HTTP_GET, "/metrics", HTTP_NO_BUDGET | HTTP_GZIP, 0, metrics, c},
		{HTTP_GET, "/-/healthy", HTTP_NO_AUTH | HTTP_NO_BUDGET, 0, healthy, c},
		{HTTP_GET, "/-/ready", HTTP_NO_AUTH | HTTP_NO_BUDGET, 0, ready, c},
		{HTTP_GET, "/-/members", HTTP_WORKER | HTTP_GZIP, 0, members, c},
		{HTTP_GET, "/-/ring", HTTP_WORKER | HTTP_GZIP, 0, ring, c},
	};
	const struct http_server_config cfg = {.address = f->http_address,
		.web_config = f->web_config_file,
		.threads = 1,
		.workers = 2,
		.worker_queue = 8,
		.max_connections = 64,
		.idle_timeout_ms = 60000,
		.request_timeout_ms = 30000,
		.max_inflight_bytes = MIB};
	return http_server_start(&cfg, routes, sizeof routes / sizeof *routes, out, err);
}

/* ---- the flags ---- */

#define STRING(flag, field, def, value, common_, words)                                                                                              \
	{                                                                                                                                            \
		.name = flag, .kind = FLAG_STRING, .into = &f->field, .fallback = def, .value_name = value, .help = words, .common = common_         \
	}

static size_t flag_table(struct control_flags *f, struct flag *out)
{
	const struct flag table[] = {
		STRING("configmap-name", cfg.configmap, NULL, "NAME", true,
			"The base: a ConfigMap with rings and their tenants, without endpoints. Not given: a ring for each label there is, for all "
			"tenants."),
		STRING("configmap-generated-name", cfg.generated, "varve-hashrings-generated", "NAME", true,
			"The ConfigMap to write: the base with endpoints."),
		STRING("file-name", cfg.file_name, "hashrings.json", "NAME", true, "The key of both ConfigMaps."),
		STRING("namespace", cfg.namespace, NULL, "NAME", true, "Of everything. Not given: this Pod's."),
		STRING("statefulset-label", cfg.label, "controller.receive.thanos.io=thanos-receive-controller", "SELECTOR", true,
			"StatefulSets with it, and Pods with it, are looked at; controller.receive.thanos.io/hashring of a StatefulSet names its "
			"ring."),
		STRING("cluster-domain", cfg.cluster_domain, "cluster.local", "NAME", false, "The end of the endpoints' names."),
		{.name = "port",
			.kind = FLAG_U64,
			.into = &f->port,
			.fallback = "19291",
			.value_name = "PORT",
			.help = "Of members: in their endpoints, and where they are asked. Members: --http.address.",
			.common = true},
		{.name = "use-az-aware-hashring",
			.kind = FLAG_BOOL,
			.into = &f->cfg.az_aware,
			.help = "Endpoints have a zone: --pod-az-annotation-key, else the Pod's label topology.kubernetes.io/zone, else its "
				"StatefulSet's "
				"name.",
			.common = true},
		{.name = "control.node-zones",
			.kind = FLAG_BOOL,
			.into = &f->cfg.node_zones,
			.help = "Where neither names one, the Node's label topology.kubernetes.io/zone is the zone. Needs the right to list and "
				"watch Nodes."},
		STRING("pod-az-annotation-key", cfg.az_annotation, NULL, "KEY", false, "The Pods' annotation that names their zone."),
		{.name = "replication-factor",
			.kind = FLAG_U64,
			.into = &f->factor,
			.fallback = "1",
			.value_name = "N",
			.help = "As the members have it. No ring has fewer endpoints.",
			.common = true},
		{.name = "hashrings.algorithm",
			.kind = FLAG_CHOICE,
			.into = &f->algorithm,
			.fallback = "ketama",
			.value_name = "ketama|hashmod",
			.help = "As the members have it: of rings that name none.",
			.common = true},
		STRING("peer.secret-file", cfg.secret_file, NULL, "PATH", true,
			"The secret that members take orders by: they are signed with it. Re-read when it changes."),
		STRING("peer.ca-file", cfg.member_ca, NULL, "PATH", false,
			"Who signed the members' certificates, with --control.member-scheme=https."),
		STRING("peer.tls-cert-file", cfg.member_cert, NULL, "PATH", false,
			"A certificate that makes this a peer of members that ask for one."),
		STRING("peer.tls-key-file", cfg.member_key, NULL, "PATH", false, "Its key."),
		{.name = "control.member-scheme",
			.kind = FLAG_CHOICE,
			.into = &f->cfg.scheme,
			.fallback = "http",
			.value_name = "http|https",
			.help = "How members are spoken with."},
		{.name = "control.gone-after",
			.kind = FLAG_DURATION_MS,
			.into = &f->cfg.gone_after_ms,
			.fallback = "30m",
			.value_name = "DURATION",
			.help = "A member that crashed or does not answer stays in the ring so long, for a replacement to come.",
			.common = true},
		{.name = "control.settle",
			.kind = FLAG_DURATION_MS,
			.into = &f->cfg.settle_ms,
			.fallback = "300ms",
			.value_name = "DURATION",
			.help = "Changes that come within it are one."},
		{.name = "control.manual",
			.kind = FLAG_CHOICE,
			.into = &f->manual,
			.fallback = "revert",
			.value_name = "revert|keep",
			.help = "What becomes of an edit of the generated ConfigMap by hand.",
			.common = true},
		STRING("control.lease-name", cfg.lease, "varve-control", "NAME", false, "The Lease whose holder acts."),
		STRING("control.identity", cfg.identity, NULL, "NAME", false, "This process' name in it. Not given: the host's, which is the Pod's."),
		{.name = "control.lease-duration",
			.kind = FLAG_DURATION_MS,
			.into = &f->cfg.lease_ms,
			.fallback = "15s",
			.value_name = "DURATION",
			.help = "Another takes over when it was not renewed for so long."},
		STRING("control.kube-url", cfg.kube_url, NULL, "URL", true, "The API server. Not given: this Pod's."),
		STRING("control.kube-token-file", cfg.kube_token_file, NULL, "PATH", true,
			"Not given: the service account's, in a Pod. Read anew each time."),
		STRING("control.kube-ca", cfg.kube_ca_file, NULL, "PATH", true,
			"Who signed its certificate. Not given: the service account's, or the system's."),
		STRING("http.address", http_address, "127.0.0.1:8080", "HOST:PORT", true, "/metrics, /-/healthy, /-/ready, /-/members, /-/ring."),
		STRING("web.config.file", web_config_file, NULL, "PATH", false, "TLS and basic auth of that, as Prometheus has them."),
		{.name = "log.level",
			.kind = FLAG_CHOICE,
			.into = &f->log_level,
			.fallback = "info",
			.value_name = "debug|info|warn|error",
			.help = "What is logged."},
		{.name = "log.format",
			.kind = FLAG_CHOICE,
			.into = &f->log_format,
			.fallback = "logfmt",
			.value_name = "logfmt|json",
			.help = "How."},
	};
	if (out)
		memcpy(out, table, sizeof table);
	return sizeof table / sizeof *table;
}

static errc settle_flags(struct control_flags *f, char *host, size_t host_n, struct err *err)
{
	errc rc = OK;
	enum log_level level = LOG_INFO;
	enum log_format format = LOG_LOGFMT;
	log_level_parse(f->log_level, &level);
	log_format_parse(f->log_format, &format);
	log_setup(level, format);
	CHECK(f->port >= 1 && f->port <= 65535, ERR_INVALID, "--port=%" PRIu64 " must be between 1 and 65535", f->port);
	CHECK(f->factor >= 1 && f->factor <= LIMIT_RING_FACTOR, ERR_INVALID, "--replication-factor=%" PRIu64 " must be between 1 and %d", f->factor,
		LIMIT_RING_FACTOR);
	f->cfg.port = (uint16_t)f->port;
	f->cfg.ring.replication_factor = (uint32_t)f->factor;
	ring_algorithm_parse(f->algorithm, &f->cfg.ring.algorithm);
	f->cfg.manual = strcmp(f->manual, "keep") == 0 ? CONTROL_KEEP : CONTROL_REVERT;
	if (!f->cfg.identity) {
		if (gethostname(host, host_n) != 0)
			snprintf(host, host_n, "unnamed");
		host[host_n - 1] = 0;
		f->cfg.identity = host;
	}
fail:
	return rc;
}

/* ---- the process ---- */

static int run(struct control_flags *f)
{
	struct err err = {0};
	char host[256];
	struct control *c = NULL;
	struct http_server *http = NULL;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	pthread_sigmask(SIG_BLOCK, &set, NULL); /* before any thread, so that all inherit it */
	signal(SIGPIPE, SIG_IGN);
	errc rc = settle_flags(f, host, sizeof host, &err);
	if (rc == OK)
		rc = control_open(&f->cfg, &c, &err);
	if (rc == OK)
		rc = listen_http(f, c, &http, &err);
	if (rc == OK) {
		log_info("varve control runs", LSTR("version", varve_version), LI64("port", http_server_port(http)), LSTR("http", f->http_address));
		notify_systemd("READY=1");
		int sig;
		while ((sig = sigwaitinfo(&set, NULL)) < 0 && errno == EINTR)
			;
		log_info("stopping: the ring stays as it is, another controller may lead", LSTR("signal", sig == SIGINT ? "SIGINT" : "SIGTERM"));
		http_server_stop(http, 1000);
	}
	control_close(c);
	return rc == OK ? EXIT_CLEAN : cmd_fail(EXIT_USAGE, &err);
}

int cmd_control(int argc, char **argv)
{
	static struct control_flags f;
	struct err err = {0};
	struct arena arena;
	struct flag table[64];
	struct flag_program program = {
		.usage = "varve control [FLAGS]",
		.about = "The ring controller on Kubernetes. It watches StatefulSets and Pods, asks the Pods' varves what they can do, writes the "
			 "ring of those\n"
			 "that can serve into a ConfigMap, and tells every member at once. Run two: one acts, the holder of a Lease.",
		.flags = table,
		.n_flags = flag_table(&f, NULL),
	};
	struct flag_list args = {0};
	enum flags_action action = FLAGS_RUN;
	arena_init(&arena, MIB);
	flag_table(&f, table);
	errc rc = flags_parse(&program, argc, argv, &arena, &args, &action, &err);
	int code = rc ? cmd_fail(EXIT_USAGE, &err) : action == FLAGS_RUN ? run(&f) : EXIT_CLEAN;
	arena_free(&arena);
	return code;
}
