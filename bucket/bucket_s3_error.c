/* bucket/bucket_s3_error.c - what an answer that is not 2xx means to the caller, and whether the same request may do better later.
 *
 * The code in the XML decides before the status: a 404 of NoSuchBucket must never look like a missing object (the catalog would forget blocks
 * that are there), nor may the 404 page of a proxy: without NoSuchKey or NoSuchUpload in its body a 404 is trouble on the way. Only HEAD has no body.
 */
#include "bucket/bucket_s3_int.h"

static const struct {
	const char *code;
	errc rc;
	bool again;
} codes[] = {
	{"NoSuchKey", ERR_NOTFOUND, false},
	{"NoSuchVersion", ERR_NOTFOUND, false},
	{"NoSuchUpload", ERR_NOTFOUND, false},
	{"NoSuchBucket", ERR_NET, false},
	{"PreconditionFailed", ERR_EXISTS, false},
	{"ConditionalRequestConflict", ERR_NET, true},
	{"OperationAborted", ERR_NET, true},
	{"AccessDenied", ERR_DENIED, false},
	{"AllAccessDisabled", ERR_DENIED, false},
	{"AccountProblem", ERR_DENIED, false},
	{"InvalidAccessKeyId", ERR_DENIED, false},
	{"SignatureDoesNotMatch", ERR_DENIED, false},
	{"RequestTimeTooSkewed", ERR_DENIED, false},
	{"ExpiredToken", ERR_DENIED, false},
	{"InvalidToken", ERR_DENIED, false},
	{"TokenRefreshRequired", ERR_DENIED, false},
	{"PermanentRedirect", ERR_INVALID, false},
	{"TemporaryRedirect", ERR_NET, true}, /* a bucket that is minutes old */
	{"AuthorizationHeaderMalformed", ERR_INVALID, false},
	{"IllegalLocationConstraintException", ERR_INVALID, false},
	{"InvalidRegion", ERR_INVALID, false},
	{"InvalidRange", ERR_CORRUPT, false},
	{"BadDigest", ERR_CORRUPT, true},
	{"XAmzContentSHA256Mismatch", ERR_CORRUPT, true},
	{"XAmzContentChecksumMismatch", ERR_CORRUPT, true},
	{"IncompleteBody", ERR_NET, true},
	{"RequestTimeout", ERR_NET, true},
	{"SlowDown", ERR_NET, true},
	{"SlowDownRead", ERR_NET, true},
	{"SlowDownWrite", ERR_NET, true},
	{"Throttling", ERR_NET, true},
	{"RequestLimitExceeded", ERR_NET, true},
	{"InternalError", ERR_NET, true},
	{"ServiceUnavailable", ERR_NET, true},
	{"XMinioServerNotInitialized", ERR_NET, true},
	{"XMinioStorageFull", ERR_NET, false},
	{"QuotaExceeded", ERR_NET, false},
	{"NotImplemented", ERR_UNSUPPORTED, false},
	{"EntityTooLarge", ERR_LIMIT, false},
	{"KeyTooLongError", ERR_INVALID, false},
};

errc s3_error_class(int status, const char *code, bool head, bool *again)
{
	for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
		if (strcmp(codes[i].code, code) == 0) {
			*again = codes[i].again;
			return codes[i].rc;
		}
	}
	/* HEAD can't say which: a request that timed out and a token that expired are both 400. */
	*again = status >= 500 || (head && status == 400) || status == 408 || status == 409 || status == 425 || status == 429;
	if (status == 501) {
		*again = false;
		return ERR_UNSUPPORTED;
	}
	if (*again)
		return ERR_NET;
	switch (status) {
	case 401:
	case 403:
		return ERR_DENIED;
	case 404:
		*again = !head;
		return head ? ERR_NOTFOUND : ERR_NET;
	case 412:
		return ERR_EXISTS;
	case 416:
		return ERR_CORRUPT;
	default:
		return ERR_INVALID;
	}
}

/* A server's word on its way into a log line: printable, bounded. */
static void words(struct span s, char *out, size_t n)
{
	size_t k = 0;
	for (size_t i = 0; i < s.n && k + 1 < n; i++) {
		unsigned char c = (unsigned char)s.p[i];
		out[k++] = c >= 0x20 && c < 0x7f ? (char)c : ' ';
	}
	out[k] = 0;
}

static errc on_close(void *arg, int depth, const char *parent, const char *name, struct span text, struct err *err)
{
	struct s3_error *e = arg;
	(void)err;
	if (depth != 2 || strcmp(parent, "Error") != 0)
		return OK;
	if (strcmp(name, "Code") == 0)
		words(text, e->code, sizeof e->code);
	else if (strcmp(name, "Message") == 0)
		words(text, e->message, sizeof e->message);
	else if (strcmp(name, "Region") == 0)
		words(text, e->region, sizeof e->region);
	else if (strcmp(name, "RequestId") == 0)
		words(text, e->request_id, sizeof e->request_id);
	return OK;
}

void s3_error_parse(struct span body, struct s3_error *out)
{
	struct s3_xml handler = {.close = on_close, .arg = out};
	*out = (struct s3_error){0};
	if (body.n == 0)
		return;
	/* What was read before damage still tells something. */
	errc rc = s3_xml_parse("error answer", body, &handler, NULL);
	(void)rc;
}
