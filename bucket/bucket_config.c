/* bucket/bucket_config.c - Thanos' object store YAML, read strictly.
 *
 *     type: S3                       type: FILESYSTEM
 *     config:                        config:
 *       bucket: metrics                directory: /var/lib/varve/bucket
 *       endpoint: 127.0.0.1:9000
 *       insecure: true
 *     prefix: team-a
 *
 * Every key that Thanos knows is known here; what varve can't do is refused by name with the reason when it is set to something (Thanos'
 * own template, with all its empty strings, is fine), and a word nobody knows is refused with what was probably meant. A setting that would be
 * silently ignored is how data ends up in the wrong place. The few that are accepted without effect are those without consequence:
 * idle_conn_timeout, expect_continue_timeout, disable_compression, disable_dualstack.
 */
#include <strings.h>
#include "base/config.h"
#include "bucket/bucket_int.h"

static const char *const top_keys[] = {"type", "config", "prefix"};
static const char *const dir_keys[] = {"directory"};
static const char *const s3_keys[] = {"bucket", "endpoint", "region", "access_key", "secret_key", "session_token", "insecure", "signature_version2",
	"bucket_lookup_type", "part_size", "put_user_metadata", "http_config", "trace", "list_objects_version", "sse_config", "aws_sdk_auth",
	"sts_endpoint", "disable_dualstack", "disable_multipart", "send_content_md5", "max_retries"};
static const char *const http_keys[] = {"idle_conn_timeout", "response_header_timeout", "insecure_skip_verify", "tls_handshake_timeout",
	"expect_continue_timeout", "max_idle_conns", "max_idle_conns_per_host", "max_conns_per_host", "tls_config", "disable_compression"};
static const char *const tls_keys[] = {"ca_file", "cert_file", "key_file", "server_name", "insecure_skip_verify"};
static const char *const sse_keys[] = {"type", "kms_key_id", "kms_encryption_context", "encryption_key"};
static const char *const trace_keys[] = {"enable"};
static const char *const types[] = {"FILESYSTEM", "S3"};
static const char *const foreign_types[] = {"GCS", "AZURE", "SWIFT", "COS", "ALIYUNOSS", "BOS", "OCI", "OBS"};

#define COUNT(a) (sizeof(a) / sizeof *(a))
#define LINE(y) ((y) ? (y)->line : 0)

struct ctx {
	const char *name;
	struct arena *arena;
	struct bucket_config *out;
};

/* A nested map; absent and empty give NULL. */
static errc submap(const struct ctx *c, const struct yaml *map, const char *key, struct yaml **out, struct err *err)
{
	struct yaml *y = map ? yaml_get(map, key) : NULL;
	*out = NULL;
	if (!y || (y->kind == YAML_SCALAR && y->scalar.n == 0))
		return OK;
	if (y->kind != YAML_MAP)
		return err_set(err, ERR_INVALID, "%s:%d: %s must be a map of keys", c->name, y->line, key);
	*out = y;
	return OK;
}

/* Keys of `map` that are set to something and can't be honoured. */
static errc refuse(const struct ctx *c, const struct yaml *map, const char *key, const char *why, struct err *err)
{
	struct yaml *y = yaml_get(map, key);
	if (!y || (y->kind == YAML_SCALAR && (y->scalar.n == 0 || span_is(y->scalar, "false") || span_is(y->scalar, "0"))) ||
		(y->kind != YAML_SCALAR && y->n == 0))
		return OK;
	return err_set(err, ERR_INVALID, "%s:%d: %s is not supported: %s", c->name, y->line, key, why);
}

static errc tls_parse(const struct ctx *c, const struct yaml *http, struct err *err)
{
	errc rc = OK;
	struct s3_config *s3 = &c->out->s3;
	struct yaml *tls;
	bool skip = false;
	TRY(submap(c, http, "tls_config", &tls, err));
	if (!tls)
		return OK;
	TRY(yaml_only(c->name, tls, "tls_config", tls_keys, COUNT(tls_keys), err));
	TRY(yaml_string(c->name, tls, "ca_file", &s3->ca_file, err));
	TRY(yaml_string(c->name, tls, "cert_file", &s3->cert_file, err));
	TRY(yaml_string(c->name, tls, "key_file", &s3->key_file, err));
	TRY(yaml_string(c->name, tls, "server_name", &s3->server_name, err));
	TRY(yaml_bool(c->name, tls, "insecure_skip_verify", &skip, err));
	s3->insecure_skip_verify |= skip;
	CHECK((s3->cert_file[0] == 0) == (s3->key_file[0] == 0), ERR_INVALID, "%s:%d: tls_config: cert_file and key_file go together", c->name,
		tls->line);
fail:
	return rc;
}

static errc http_parse(const struct ctx *c, const struct yaml *config, struct err *err)
{
	errc rc = OK;
	struct s3_config *s3 = &c->out->s3;
	struct yaml *http;
	int64_t unused_ms = 0;
	bool unused = false;
	uint64_t per_host = 0;
	TRY(submap(c, config, "http_config", &http, err));
	if (!http)
		return OK;
	TRY(yaml_only(c->name, http, "http_config", http_keys, COUNT(http_keys), err));
	TRY(refuse(c, http, "max_conns_per_host", "connections are as many as operations run at once", err));
	TRY(yaml_duration_ms(c->name, http, "idle_conn_timeout", &unused_ms, err));
	TRY(yaml_duration_ms(c->name, http, "expect_continue_timeout", &unused_ms, err));
	TRY(yaml_bool(c->name, http, "disable_compression", &unused, err));
	TRY(yaml_duration_ms(c->name, http, "response_header_timeout", &s3->idle_timeout_ms, err));
	TRY(yaml_duration_ms(c->name, http, "tls_handshake_timeout", &s3->connect_timeout_ms, err));
	TRY(yaml_bool(c->name, http, "insecure_skip_verify", &s3->insecure_skip_verify, err));
	TRY(yaml_size(c->name, http, "max_idle_conns", &s3->max_idle_connections, err));
	TRY(yaml_size(c->name, http, "max_idle_conns_per_host", &per_host, err));
	if (per_host && per_host < s3->max_idle_connections)
		s3->max_idle_connections = per_host;
	if (s3->max_idle_connections > 1024)
		s3->max_idle_connections = 1024;
	/* Go's 0 is "no limit": a server that hangs would hold a thread for ever. */
	if (s3->idle_timeout_ms <= 0)
		s3->idle_timeout_ms = LIMIT_S3_IDLE_MS;
	if (s3->connect_timeout_ms <= 0)
		s3->connect_timeout_ms = LIMIT_S3_CONNECT_MS;
	TRY(tls_parse(c, http, err));
fail:
	return rc;
}

static errc sse_parse(const struct ctx *c, const struct yaml *config, struct err *err)
{
	errc rc = OK;
	struct yaml *sse;
	const char *type = "";
	TRY(submap(c, config, "sse_config", &sse, err));
	if (!sse)
		return OK;
	TRY(yaml_only(c->name, sse, "sse_config", sse_keys, COUNT(sse_keys), err));
	TRY(yaml_string(c->name, sse, "type", &type, err));
	CHECK(strcmp(type, "SSE-KMS") != 0 && strcmp(type, "SSE-C") != 0, ERR_INVALID,
		"%s:%d: sse_config type %s is not supported: its checksums can't be verified after a put. Supported: SSE-S3 (or encrypt by the "
		"bucket's default)",
		c->name, sse->line, type);
	CHECK(type[0] == 0 || strcmp(type, "SSE-S3") == 0, ERR_INVALID, "%s:%d: sse_config type \"%s\" is unknown. Supported: SSE-S3", c->name,
		sse->line, type);
	TRY(refuse(c, sse, "kms_key_id", "only SSE-S3 is", err));
	TRY(refuse(c, sse, "kms_encryption_context", "only SSE-S3 is", err));
	TRY(refuse(c, sse, "encryption_key", "only SSE-S3 is", err));
	c->out->s3.sse_s3 = type[0] != 0;
fail:
	return rc;
}

static bool header_safe(struct span s, bool name)
{
	for (size_t i = 0; i < s.n; i++) {
		unsigned char ch = (unsigned char)s.p[i];
		if (ch < (name ? 0x21 : 0x20) || ch > 0x7e || (name && strchr("()<>@,;:\\\"/[]?={}", ch)))
			return false;
	}
	return s.n > 0 || !name;
}

/* As minio-go sends them: names of the protocol as they are, all others behind x-amz-meta-. */
static errc metadata_parse(const struct ctx *c, const struct yaml *config, struct err *err)
{
	static const char *const known[] = {
		"content-type", "cache-control", "content-encoding", "content-disposition", "content-language", "expires"};
	errc rc = OK;
	struct s3_config *s3 = &c->out->s3;
	struct yaml *meta;
	TRY(submap(c, config, "put_user_metadata", &meta, err));
	if (!meta)
		return OK;
	CHECK(meta->n <= 32, ERR_LIMIT, "%s:%d: put_user_metadata has %zu keys, at most 32", c->name, meta->line, meta->n);
	s3->metadata = arena_calloc(c->arena, meta->n, sizeof *s3->metadata);
	CHECK(s3->metadata, ERR_NOMEM, "%s: out of memory", c->name);
	for (size_t i = 0; i < meta->n; i++) {
		struct span key = meta->pairs[i].key;
		const struct yaml *val = meta->pairs[i].value;
		CHECK(val->kind == YAML_SCALAR && header_safe(key, true) && header_safe(val->scalar, false) && key.n <= 256 && val->scalar.n <= 2048,
			ERR_INVALID, "%s:%d: put_user_metadata: keys are header names and values printable ASCII", c->name, val->line);
		bool plain = key.n > 6 && strncasecmp(key.p, "x-amz-", 6) == 0;
		for (size_t k = 0; k < COUNT(known); k++)
			plain |= key.n == strlen(known[k]) && strncasecmp(key.p, known[k], key.n) == 0;
		char *name = arena_printf(c->arena, "%s%.*s", plain ? "" : "x-amz-meta-", (int)key.n, key.p);
		const char *value = arena_cstr(c->arena, val->scalar);
		CHECK(name && value, ERR_NOMEM, "%s: out of memory", c->name);
		for (char *p = name; *p; p++) {
			if (*p >= 'A' && *p <= 'Z')
				*p = (char)(*p + 32);
		}
		/* A header that signs, checks or conditions the request belongs to this folder. */
		CHECK(!plain || strncmp(name, "x-amz-", 6) != 0 || strncmp(name, "x-amz-meta-", 11) == 0 ||
				strcmp(name, "x-amz-storage-class") == 0 || strcmp(name, "x-amz-tagging") == 0 || strcmp(name, "x-amz-acl") == 0,
			ERR_INVALID, "%s:%d: put_user_metadata: %s can't be set here (x-amz-storage-class, x-amz-tagging and x-amz-acl can)", c->name,
			val->line, name);
		s3->metadata[i] = (struct s3_header){name, value};
	}
	s3->n_metadata = meta->n;
fail:
	return rc;
}

static bool bucket_name_valid(const char *s)
{
	size_t n = strlen(s);
	if (n < 1 || n > 255 || s[0] == '.' || strstr(s, ".."))
		return false;
	return strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == n;
}

static bool endpoint_valid(const char *s)
{
	size_t n = strlen(s);
	return n > 0 && n <= 300 && strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-:[]") == n;
}

static errc s3_check(const struct ctx *c, const struct yaml *config, struct err *err)
{
	errc rc = OK;
	const struct s3_config *s3 = &c->out->s3;
	CHECK(s3->bucket[0], ERR_INVALID, "%s:%d: config of type S3 needs a bucket", c->name, LINE(config));
	CHECK(bucket_name_valid(s3->bucket), ERR_INVALID, "%s:%d: bucket \"%.80s\" is not a bucket's name: letters, digits, '.', '-' and '_'",
		c->name, LINE(config), s3->bucket);
	CHECK(s3->endpoint[0], ERR_INVALID, "%s:%d: config of type S3 needs an endpoint (host or host:port)", c->name, LINE(config));
	CHECK(!strstr(s3->endpoint, "://"), ERR_INVALID, "%s:%d: endpoint \"%.200s\": give host:port without a scheme (insecure: true is http)",
		c->name, LINE(config), s3->endpoint);
	CHECK(endpoint_valid(s3->endpoint), ERR_INVALID, "%s:%d: endpoint \"%.200s\" is not host or host:port", c->name, LINE(config), s3->endpoint);
	CHECK(strspn(s3->region, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == strlen(s3->region) &&
			strlen(s3->region) <= 64,
		ERR_INVALID, "%s:%d: region \"%.80s\" is not a region's name", c->name, LINE(config), s3->region);
	CHECK((s3->access_key[0] == 0) == (s3->secret_key[0] == 0), ERR_INVALID,
		"%s:%d: access_key and secret_key go together (with neither, AWS_* variables and ~/.aws/credentials are read)", c->name,
		LINE(config));
	CHECK(s3->access_key[0] || !s3->session_token[0], ERR_INVALID, "%s:%d: session_token needs access_key and secret_key", c->name, LINE(config));
	CHECK(s3->part_size_bytes >= LIMIT_S3_PART_MIN && s3->part_size_bytes <= LIMIT_S3_PART_MAX, ERR_INVALID,
		"%s:%d: part_size is %llu bytes, S3 allows 5MiB to 5GiB", c->name, LINE(yaml_get(config, "part_size")),
		(unsigned long long)s3->part_size_bytes);
	CHECK(s3->max_attempts >= 1 && s3->max_attempts <= 100, ERR_INVALID, "%s:%d: max_retries is %llu, give 1 to 100", c->name,
		LINE(yaml_get(config, "max_retries")), (unsigned long long)s3->max_attempts);
fail:
	return rc;
}

static errc s3_parse(const struct ctx *c, const struct yaml *config, struct err *err)
{
	errc rc = OK;
	struct s3_config *s3 = &c->out->s3;
	struct yaml *trace;
	const char *lookup = "auto", *version = "";
	bool unused = false;
	uint64_t retries = 0;

	TRY(yaml_only(c->name, config, "config", s3_keys, COUNT(s3_keys), err));
	TRY(refuse(c, config, "signature_version2", "the old signature is broken; signature 4 works with every store of the last ten years", err));
	TRY(refuse(c, config, "aws_sdk_auth",
		"give access_key and secret_key, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in ~/.aws/credentials", err));
	TRY(refuse(c, config, "sts_endpoint", "instance roles and web identities are not read; use keys or ~/.aws/credentials", err));
	TRY(yaml_string(c->name, config, "bucket", &s3->bucket, err));
	TRY(yaml_string(c->name, config, "endpoint", &s3->endpoint, err));
	TRY(yaml_string(c->name, config, "region", &s3->region, err));
	TRY(yaml_string(c->name, config, "access_key", &s3->access_key, err));
	TRY(yaml_string(c->name, config, "secret_key", &s3->secret_key, err));
	TRY(yaml_string(c->name, config, "session_token", &s3->session_token, err));
	TRY(yaml_bool(c->name, config, "insecure", &s3->insecure, err));
	TRY(yaml_bool(c->name, config, "disable_dualstack", &unused, err));
	TRY(yaml_bool(c->name, config, "disable_multipart", &s3->disable_multipart, err));
	TRY(yaml_bool(c->name, config, "send_content_md5", &s3->send_content_md5, err));
	TRY(yaml_size(c->name, config, "part_size", &s3->part_size_bytes, err));
	TRY(yaml_size(c->name, config, "max_retries", &retries, err));
	if (retries)
		s3->max_attempts = retries;

	TRY(yaml_string(c->name, config, "bucket_lookup_type", &lookup, err));
	if (strcmp(lookup, "path") == 0)
		s3->lookup = S3_LOOKUP_PATH;
	else if (strcmp(lookup, "virtual-hosted") == 0)
		s3->lookup = S3_LOOKUP_VIRTUAL;
	else
		CHECK(strcmp(lookup, "auto") == 0 || lookup[0] == 0, ERR_INVALID,
			"%s:%d: bucket_lookup_type is \"%s\", give auto, path or virtual-hosted", c->name,
			LINE(yaml_get(config, "bucket_lookup_type")), lookup);

	TRY(yaml_string(c->name, config, "list_objects_version", &version, err));
	CHECK(version[0] == 0 || strcmp(version, "v1") == 0 || strcmp(version, "v2") == 0, ERR_INVALID,
		"%s:%d: list_objects_version is \"%s\", give v1 or v2", c->name, LINE(yaml_get(config, "list_objects_version")), version);
	s3->list_v1 = strcmp(version, "v1") == 0;

	TRY(submap(c, config, "trace", &trace, err));
	if (trace) {
		TRY(yaml_only(c->name, trace, "trace", trace_keys, COUNT(trace_keys), err));
		TRY(yaml_bool(c->name, trace, "enable", &s3->trace, err));
	}
	TRY(http_parse(c, config, err));
	TRY(sse_parse(c, config, err));
	TRY(metadata_parse(c, config, err));
	TRY(s3_check(c, config, err));
fail:
	return rc;
}

/* Thanos trims slashes at both ends; inside, the parts are those of a key. */
static errc prefix_parse(const struct ctx *c, const struct yaml *top, struct err *err)
{
	errc rc = OK;
	const char *prefix = "";
	TRY(yaml_string(c->name, top, "prefix", &prefix, err));
	size_t skip = strspn(prefix, "/"), n = strlen(prefix);
	while (n > skip && prefix[n - 1] == '/')
		n--;
	c->out->prefix = arena_cstr(c->arena, span_of(prefix + skip, n - skip));
	CHECK(c->out->prefix, ERR_NOMEM, "%s: out of memory", c->name);
	CHECK(n - skip <= 512, ERR_INVALID, "%s:%d: prefix of %zu bytes, at most 512", c->name, LINE(yaml_get(top, "prefix")), n - skip);
	if (c->out->prefix[0] && bucket_key_check(c->out->prefix, err)) {
		rc = err_wrap(err, "%s:%d: prefix", c->name, LINE(yaml_get(top, "prefix")));
		goto fail;
	}
fail:
	return rc;
}

static errc type_parse(const struct ctx *c, const struct yaml *top, struct err *err)
{
	errc rc = OK;
	const char *type = "";
	TRY(yaml_string(c->name, top, "type", &type, err));
	CHECK(type[0], ERR_INVALID, "%s: type is missing. Supported: FILESYSTEM, S3", c->name);
	int line = LINE(yaml_get(top, "type"));
	if (strcasecmp(type, "FILESYSTEM") == 0) {
		c->out->type = BUCKET_FILESYSTEM;
		return OK;
	}
	if (strcasecmp(type, "S3") == 0) {
		c->out->type = BUCKET_S3;
		return OK;
	}
	for (size_t i = 0; i < COUNT(foreign_types); i++)
		CHECK(strcasecmp(type, foreign_types[i]) != 0, ERR_INVALID,
			"%s:%d: type %s is not supported. Supported: FILESYSTEM, S3 (most stores speak S3 as well)", c->name, line, type);
	const char *meant = did_you_mean(type, types, COUNT(types));
	CHECK(!meant, ERR_INVALID, "%s:%d: type \"%.40s\" is unknown, did you mean %s? Supported: FILESYSTEM, S3", c->name, line, type, meant);
	CHECK(false, ERR_INVALID, "%s:%d: type \"%.40s\" is unknown. Supported: FILESYSTEM, S3", c->name, line, type);
fail:
	return rc;
}

errc bucket_config_parse(const char *name, struct span text, const char *default_dir, struct arena *arena, struct bucket_config *out, struct err *err)
{
	errc rc = OK;
	struct ctx ctx = {name, arena, out}, *c = &ctx;
	struct yaml *top, *config;
	static const struct yaml empty = {.kind = YAML_MAP};

	*out = (struct bucket_config){.prefix = "", .directory = ""};
	out->s3 = (struct s3_config){.bucket = "",
		.endpoint = "",
		.region = "",
		.access_key = "",
		.secret_key = "",
		.session_token = "",
		.ca_file = "",
		.cert_file = "",
		.key_file = "",
		.server_name = "",
		.part_size_bytes = LIMIT_S3_PART_BYTES,
		.send_content_md5 = true,
		.max_attempts = LIMIT_S3_ATTEMPTS,
		.connect_timeout_ms = LIMIT_S3_CONNECT_MS,
		.idle_timeout_ms = LIMIT_S3_IDLE_MS,
		.max_idle_connections = 64};

	CHECK(text.n <= LIMIT_CONFIG_BYTES, ERR_LIMIT, "%s: %zu bytes, at most %llu", name, text.n, (unsigned long long)LIMIT_CONFIG_BYTES);
	TRY(yaml_parse(name, text, arena, &top, err));
	CHECK(top->kind == YAML_MAP, ERR_INVALID, "%s:%d: an object store's configuration is a map with type, config and prefix", name, top->line);
	if (top->n == 0) {
		CHECK(default_dir && default_dir[0], ERR_INVALID, "%s: empty. Give type and config; supported types: FILESYSTEM, S3", name);
		out->type = BUCKET_FILESYSTEM;
		out->directory = arena_cstr(arena, span_cstr(default_dir));
		CHECK(out->directory, ERR_NOMEM, "%s: out of memory", name);
		return OK;
	}
	TRY(yaml_only(name, top, "the object store's configuration", top_keys, COUNT(top_keys), err));
	TRY(type_parse(c, top, err));
	TRY(prefix_parse(c, top, err));
	TRY(submap(c, top, "config", &config, err));
	if (out->type == BUCKET_S3) {
		TRY(s3_parse(c, config ? config : &empty, err));
	} else {
		if (config) {
			TRY(yaml_only(name, config, "config", dir_keys, COUNT(dir_keys), err));
			TRY(yaml_string(name, config, "directory", &out->directory, err));
		}
		CHECK(out->directory[0], ERR_INVALID, "%s: config of type FILESYSTEM needs a directory", name);
	}
fail:
	return rc;
}
