/* Thanos' object store YAML: what it takes, and in which words it refuses the rest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/log.h"
#include "bucket/bucket_int.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/tmp.h"

#define S3_HEAD "type: S3\nconfig:\n  bucket: metrics\n  endpoint: 127.0.0.1:9000\n"

static errc parse(const char *text, struct arena *a, struct bucket_config *c, struct err *err)
{
	return bucket_config_parse("bucket.yml", span_cstr(text), "data/bucket", a, c, err);
}

/* The whole of `thanos tools bucket` documentation's template: every key that Thanos knows, most of them empty. */
static const char thanos_template[] = "type: S3\n"
				      "config:\n"
				      "  bucket: \"metrics\"\n"
				      "  endpoint: \"s3.eu-west-1.amazonaws.com\"\n"
				      "  region: \"\"\n"
				      "  disable_dualstack: false\n"
				      "  aws_sdk_auth: false\n"
				      "  access_key: \"A\"\n"
				      "  insecure: false\n"
				      "  signature_version2: false\n"
				      "  secret_key: \"S\"\n"
				      "  session_token: \"\"\n"
				      "  put_user_metadata: {}\n"
				      "  http_config:\n"
				      "    idle_conn_timeout: 1m30s\n"
				      "    response_header_timeout: 2m\n"
				      "    insecure_skip_verify: false\n"
				      "    tls_handshake_timeout: 10s\n"
				      "    expect_continue_timeout: 1s\n"
				      "    max_idle_conns: 100\n"
				      "    max_idle_conns_per_host: 100\n"
				      "    max_conns_per_host: 0\n"
				      "    tls_config:\n"
				      "      ca_file: \"\"\n"
				      "      cert_file: \"\"\n"
				      "      key_file: \"\"\n"
				      "      server_name: \"\"\n"
				      "      insecure_skip_verify: false\n"
				      "    disable_compression: false\n"
				      "  trace:\n"
				      "    enable: false\n"
				      "  list_objects_version: \"\"\n"
				      "  bucket_lookup_type: auto\n"
				      "  send_content_md5: true\n"
				      "  disable_multipart: false\n"
				      "  part_size: 67108864\n"
				      "  sse_config:\n"
				      "    type: \"\"\n"
				      "    kms_key_id: \"\"\n"
				      "    kms_encryption_context: {}\n"
				      "    encryption_key: \"\"\n"
				      "  sts_endpoint: \"\"\n"
				      "  max_retries: 0\n"
				      "prefix: \"\"\n";

static void thanos_own_template(void **state)
{
	(void)state;
	struct arena a;
	struct bucket_config c;
	struct err err = {0};
	arena_init(&a, 4 * MIB);
	if (parse(thanos_template, &a, &c, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(c.type, BUCKET_S3);
	assert_string_equal(c.prefix, "");
	assert_string_equal(c.s3.bucket, "metrics");
	assert_int_equal(c.s3.part_size_bytes, 64 * MIB);
	assert_int_equal(c.s3.idle_timeout_ms, 120000);
	assert_int_equal(c.s3.connect_timeout_ms, 10000);
	assert_int_equal(c.s3.max_attempts, LIMIT_S3_ATTEMPTS);
	assert_int_equal(c.s3.max_idle_connections, 100);
	assert_true(c.s3.send_content_md5);
	assert_false(c.s3.sse_s3);
	arena_free(&a);
}

static void values_are_taken(void **state)
{
	(void)state;
	struct arena a;
	struct bucket_config c;
	struct err err = {0};
	arena_init(&a, 4 * MIB);
	assert_int_equal(parse("", &a, &c, &err), OK);
	assert_int_equal(c.type, BUCKET_FILESYSTEM);
	assert_string_equal(c.directory, "data/bucket");
	assert_int_equal(parse("type: filesystem\nconfig:\n  directory: /srv/b\nprefix: /a/b/\n", &a, &c, &err), OK);
	assert_string_equal(c.directory, "/srv/b");
	assert_string_equal(c.prefix, "a/b");

	setenv("BUCKET_TEST_SECRET", "s3cr3t: #x", 1);
	if (parse(S3_HEAD
		    "  insecure: true\n  region: eu-west-1\n  access_key: K\n  secret_key: \"${BUCKET_TEST_SECRET}\"\n  session_token: T\n"
		    "  bucket_lookup_type: virtual-hosted\n  part_size: 8MiB\n  max_retries: 3\n  list_objects_version: v1\n"
		    "  send_content_md5: false\n  sse_config: {type: SSE-S3}\n  trace: {enable: true}\n"
		    "  put_user_metadata: {X-Amz-Storage-Class: STANDARD_IA, team: \"a b\", Cache-Control: no-store}\n"
		    "  http_config: {response_header_timeout: 0s, max_idle_conns_per_host: 5, insecure_skip_verify: true, tls_config: {ca_file: /ca, "
		    "cert_file: /c, key_file: /k, server_name: n}}\nprefix: team-a\n",
		    &a, &c, &err))
		fail_msg("%s", err.msg);
	assert_string_equal(c.s3.secret_key, "s3cr3t: #x");
	assert_string_equal(c.s3.region, "eu-west-1");
	assert_string_equal(c.s3.session_token, "T");
	assert_int_equal(c.s3.lookup, S3_LOOKUP_VIRTUAL);
	assert_int_equal(c.s3.part_size_bytes, 8 * MIB);
	assert_int_equal(c.s3.max_attempts, 3);
	assert_true(c.s3.list_v1 && c.s3.sse_s3 && c.s3.trace && !c.s3.send_content_md5 && c.s3.insecure_skip_verify && c.s3.insecure);
	assert_int_equal(c.s3.idle_timeout_ms, LIMIT_S3_IDLE_MS);
	assert_int_equal(c.s3.max_idle_connections, 5);
	assert_int_equal(c.s3.n_metadata, 3);
	assert_string_equal(c.s3.metadata[0].name, "x-amz-storage-class");
	assert_string_equal(c.s3.metadata[1].name, "x-amz-meta-team");
	assert_string_equal(c.s3.metadata[1].value, "a b");
	assert_string_equal(c.s3.metadata[2].name, "cache-control");
	assert_string_equal(c.s3.ca_file, "/ca");
	assert_string_equal(c.s3.server_name, "n");
	arena_free(&a);
}

/* Text, and words that the refusal must have. */
static const struct {
	const char *text, *words[4];
} refused[] = {
	{"config: {directory: x}\n", {"type is missing", "FILESYSTEM, S3"}},
	{"type: GCS\nconfig: {bucket: x}\n", {"bucket.yml:1", "GCS", "not supported", "FILESYSTEM, S3"}},
	{"type: AZURE\n", {"AZURE", "FILESYSTEM, S3"}},
	{"type: FILESYSTM\n", {"\"FILESYSTM\"", "did you mean FILESYSTEM", "FILESYSTEM, S3"}},
	{"type: carrier-pigeon\n", {"unknown", "FILESYSTEM, S3"}},
	{"- a\n", {"bucket.yml", "map"}},
	{"type: [S3]\n", {"bucket.yml:1", "type"}},
	{"type: FILESYSTEM\n", {"needs a directory"}},
	{"type: FILESYSTEM\nconfig: {directory: \"\"}\n", {"needs a directory"}},
	{"type: FILESYSTEM\nconfig: {dir: x}\n", {"\"dir\"", "directory"}},
	{"type: FILESYSTEM\nconfig: {directory: x, bucket: y}\n", {"\"bucket\"", "Known are: directory"}},
	{"type: FILESYSTEM\nconfig: [x]\n", {"config must be a map"}},
	{"type: FILESYSTEM\nconfig: {directory: x}\nprefx: y\n", {"bucket.yml:3", "did you mean \"prefix\"", "Known are"}},
	{"type: FILESYSTEM\nconfig: {directory: x}\nprefix: a/../b\n", {"bucket.yml:3", "prefix", "\"..\""}},
	{"type: FILESYSTEM\nconfig: {directory: x}\nprefix: a//b\n", {"prefix", "empty part"}},
	{"type: FILESYSTEM\ntype: S3\n", {"bucket.yml:2"}},
	{"type: S3\n", {"needs a bucket"}},
	{"type: S3\nconfig: {bucket: metrics}\n", {"needs an endpoint"}},
	{"type: S3\nconfig: {bucket: a/b, endpoint: h}\n", {"\"a/b\""}},
	{"type: S3\nconfig: {bucket: a..b, endpoint: h}\n", {"\"a..b\""}},
	{"type: S3\nconfig: {bucket: b, endpoint: \"https://h:9000\"}\n", {"without a scheme", "insecure"}},
	{"type: S3\nconfig: {bucket: b, endpoint: h/x}\n", {"endpoint", "host"}},
	{"type: S3\nconfig: {bucket: b, endpoint: \"u@h\"}\n", {"endpoint", "host"}},
	{"type: S3\nconfig: {bucket: b, endpoint: h, region: \"a b\"}\n", {"region"}},
	{S3_HEAD "  acess_key: x\n", {"bucket.yml:5", "did you mean \"access_key\"", "Known are: bucket, endpoint"}},
	{S3_HEAD "  access_key: x\n", {"access_key and secret_key go together"}},
	{S3_HEAD "  secret_key: x\n", {"access_key and secret_key go together"}},
	{S3_HEAD "  session_token: x\n", {"session_token needs"}},
	{S3_HEAD "  signature_version2: true\n", {"bucket.yml:5", "signature_version2", "not supported"}},
	{S3_HEAD "  aws_sdk_auth: true\n", {"aws_sdk_auth", "not supported", "~/.aws/credentials"}},
	{S3_HEAD "  sts_endpoint: sts.amazonaws.com\n", {"sts_endpoint", "not supported"}},
	{S3_HEAD "  part_size: 1MiB\n", {"bucket.yml:5", "part_size", "5MiB"}},
	{S3_HEAD "  part_size: 6GiB\n", {"part_size", "5GiB"}},
	{S3_HEAD "  part_size: many\n", {"part_size"}},
	{S3_HEAD "  max_retries: 1000\n", {"max_retries"}},
	{S3_HEAD "  insecure: maybe\n", {"insecure"}},
	{S3_HEAD "  bucket_lookup_type: dns\n", {"\"dns\"", "auto, path or virtual-hosted"}},
	{S3_HEAD "  list_objects_version: v3\n", {"\"v3\"", "v1 or v2"}},
	{S3_HEAD "  sse_config: {type: SSE-KMS, kms_key_id: x}\n", {"SSE-KMS", "not supported", "SSE-S3"}},
	{S3_HEAD "  sse_config: {type: SSE-C, encryption_key: x}\n", {"SSE-C", "not supported"}},
	{S3_HEAD "  sse_config: {type: AES}\n", {"\"AES\"", "SSE-S3"}},
	{S3_HEAD "  sse_config: {type: SSE-S3, kms_key_id: x}\n", {"kms_key_id"}},
	{S3_HEAD "  sse_config: {tipe: SSE-S3}\n", {"did you mean \"type\""}},
	{S3_HEAD "  trace: {enabled: true}\n", {"did you mean \"enable\""}},
	{S3_HEAD "  http_config: {proxy_url: x}\n", {"\"proxy_url\"", "http_config", "Known are"}},
	{S3_HEAD "  http_config: {max_conns_per_host: 3}\n", {"max_conns_per_host", "not supported"}},
	{S3_HEAD "  http_config: {response_header_timeout: soon}\n", {"response_header_timeout"}},
	{S3_HEAD "  http_config: {tls_config: {min_version: TLS13}}\n", {"\"min_version\"", "tls_config"}},
	{S3_HEAD "  http_config: {tls_config: {cert_file: /x}}\n", {"cert_file and key_file go together"}},
	{S3_HEAD "  http_config: 5\n", {"http_config must be a map"}},
	{S3_HEAD "  put_user_metadata: {\"a b\": c}\n", {"put_user_metadata"}},
	{S3_HEAD "  put_user_metadata: {a: \"x\\ny\"}\n", {"put_user_metadata"}},
	{S3_HEAD "  put_user_metadata: {x-amz-content-sha256: c}\n", {"x-amz-content-sha256", "can't be set"}},
	{S3_HEAD "  secret_key: ${NO_SUCH_VARIABLE_HERE}\n", {"NO_SUCH_VARIABLE_HERE"}},
};

static void refusals_say_what_to_do(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
		struct arena a;
		struct bucket_config c;
		struct err err = {0};
		arena_init(&a, 4 * MIB);
		errc rc = parse(refused[i].text, &a, &c, &err);
		if (rc == OK)
			fail_msg("accepted:\n%s", refused[i].text);
		for (size_t w = 0; w < 4 && refused[i].words[w]; w++) {
			if (!strstr(err.msg, refused[i].words[w]))
				fail_msg("no \"%s\" in: %s", refused[i].words[w], err.msg);
		}
		assert_int_equal(rc, ERR_INVALID);
		arena_free(&a);
	}
}

static void empty_without_default(void **state)
{
	(void)state;
	struct arena a;
	struct bucket_config c;
	struct err err = {0};
	arena_init(&a, MIB);
	assert_int_equal(bucket_config_parse("x.yml", SPAN("# nothing\n"), NULL, &a, &c, &err), ERR_INVALID);
	assert_non_null(strstr(err.msg, "FILESYSTEM, S3"));
	arena_free(&a);
}

static void every_allocation_fails(void **state)
{
	(void)state;
	for (uint64_t n = 1;; n++) {
		struct arena a;
		struct bucket_config c;
		struct bucket *b = NULL;
		arena_init(&a, 4 * MIB);
		fail_alloc_at(n, false);
		struct err err = {0};
		errc rc = parse(thanos_template, &a, &c, &err);
		if (rc == OK)
			rc = bucket_s3_open(&c, &b, &err);
		uint64_t hits = fail_alloc_off();
		bucket_close(b);
		arena_free(&a);
		if (rc && rc != ERR_NOMEM && rc != ERR_LIMIT) /* a buffer that can not grow has reached its limit */
			fail_msg("allocation %d: %s: %s", (int)n, errc_name(rc), err.msg);
		if (!hits) {
			assert_int_equal(rc, OK);
			break;
		}
	}
}

/* ---- credentials ---- */

static void no_aws(void)
{
	unsetenv("AWS_ACCESS_KEY_ID");
	unsetenv("AWS_SECRET_ACCESS_KEY");
	unsetenv("AWS_SESSION_TOKEN");
	unsetenv("AWS_PROFILE");
	unsetenv("AWS_SHARED_CREDENTIALS_FILE");
	setenv("HOME", "/nonexistent", 1);
}

static void credentials_in_order(void **state)
{
	(void)state;
	struct arena a;
	struct bucket_config c;
	struct s3_credentials cred;
	struct err err = {0};
	const char *home = tmp_dir();
	arena_init(&a, 8 * MIB);
	no_aws();
	assert_int_equal(parse(S3_HEAD, &a, &c, &err), OK);
	assert_int_equal(s3_credentials_find(&c.s3, &a, &cred, &err), ERR_DENIED);
	assert_non_null(strstr(err.msg, "AWS_ACCESS_KEY_ID"));
	assert_non_null(strstr(err.msg, "/nonexistent/.aws/credentials"));

	assert_int_equal(io_mkdirs(tmp_path("%s/.aws", home), &err), OK);
	assert_int_equal(io_write_file(tmp_path("%s/.aws/credentials", home),
				 SPAN("# c\n[other]\naws_access_key_id=OA\r\naws_secret_access_key = OS==\n\n[default]\n\taws_access_key_id = DA \n"
				      "aws_secret_access_key=DS\naws_session_token = DT\nregion = x\n[half]\naws_access_key_id = HA\n"),
				 &err),
		OK);
	setenv("HOME", home, 1);
	assert_int_equal(s3_credentials_find(&c.s3, &a, &cred, &err), OK);
	assert_string_equal(cred.access_key, "DA");
	assert_string_equal(cred.secret_key, "DS");
	assert_string_equal(cred.session_token, "DT");
	assert_non_null(strstr(cred.source, "[default]"));
	setenv("AWS_PROFILE", "other", 1);
	assert_int_equal(s3_credentials_find(&c.s3, &a, &cred, &err), OK);
	assert_string_equal(cred.access_key, "OA");
	assert_string_equal(cred.secret_key, "OS==");
	assert_string_equal(cred.session_token, "");
	setenv("AWS_PROFILE", "half", 1);
	assert_int_equal(s3_credentials_find(&c.s3, &a, &cred, &err), ERR_DENIED);
	setenv("AWS_PROFILE", "none", 1);
	assert_int_equal(s3_credentials_find(&c.s3, &a, &cred, &err), ERR_DENIED);
	assert_non_null(strstr(err.msg, "[none]"));

	setenv("AWS_ACCESS_KEY_ID", "EA", 1);
	assert_int_equal(s3_credentials_find(&c.s3, &a, &cred, &err), ERR_DENIED); /* half a pair */
	setenv("AWS_SECRET_ACCESS_KEY", "ES", 1);
	setenv("AWS_SESSION_TOKEN", "ET", 1);
	assert_int_equal(s3_credentials_find(&c.s3, &a, &cred, &err), OK);
	assert_string_equal(cred.access_key, "EA");
	assert_string_equal(cred.session_token, "ET");
	setenv("AWS_SECRET_ACCESS_KEY", "E\nS", 1);
	assert_int_equal(s3_credentials_find(&c.s3, &a, &cred, &err), ERR_DENIED);
	assert_null(strstr(err.msg, "E\nS"));

	assert_int_equal(parse(S3_HEAD "  access_key: CA\n  secret_key: CS\n", &a, &c, &err), OK);
	assert_int_equal(s3_credentials_find(&c.s3, &a, &cred, &err), OK);
	assert_string_equal(cred.access_key, "CA");
	no_aws();
	arena_free(&a);
}

static void places_are_described_without_secrets(void **state)
{
	(void)state;
	static const struct {
		const char *yaml, *describe;
	} table[] = {
		{S3_HEAD "  insecure: true\n  access_key: K\n  secret_key: hidden\nprefix: a/b\n", "s3://metrics/a/b at http://127.0.0.1:9000"},
		{S3_HEAD "  access_key: K\n  secret_key: hidden\n", "s3://metrics at https://127.0.0.1:9000"},
		{"type: S3\nconfig: {bucket: metrics, endpoint: s3.eu-west-1.amazonaws.com, access_key: K, secret_key: hidden}\n",
			"s3://metrics at https://metrics.s3.eu-west-1.amazonaws.com"},
		{"type: S3\nconfig: {bucket: my.metrics, endpoint: \"s3.amazonaws.com:443\", access_key: K, secret_key: hidden}\n",
			"s3://my.metrics at https://s3.amazonaws.com"},
		{"type: S3\nconfig: {bucket: m, endpoint: \"[::1]:9000\", insecure: true, access_key: K, secret_key: hidden}\n",
			"s3://m at http://[::1]:9000"},
		{"type: S3\nconfig: {bucket: m, endpoint: \"h:80\", insecure: true, bucket_lookup_type: virtual-hosted, access_key: K, secret_key: "
		 "s}\n",
			"s3://m at http://m.h"},
	};
	for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
		struct bucket *b;
		struct err err = {0};
		if (bucket_open("bucket.yml", span_cstr(table[i].yaml), NULL, &b, &err))
			fail_msg("%s", err.msg);
		assert_string_equal(bucket_describe(b), table[i].describe);
		assert_null(bucket_dir(b));
		bucket_close(b);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(thanos_own_template),
		cmocka_unit_test(values_are_taken),
		cmocka_unit_test(refusals_say_what_to_do),
		cmocka_unit_test(empty_without_default),
		cmocka_unit_test(every_allocation_fails),
		cmocka_unit_test(credentials_in_order),
		cmocka_unit_test(places_are_described_without_secrets),
	};
	log_setup(LOG_ERROR, LOG_LOGFMT);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
