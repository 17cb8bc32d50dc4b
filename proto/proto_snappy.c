/* proto/proto_snappy.c - snappy's block format, as remote write and remote read have it, on libsnappy.
 *
 * The preamble declares the decompressed size: it is judged before a byte is allocated. A declared size that so few compressed bytes
 * can't reach is refused as well, so memory follows what was sent, not what was claimed.
 */
#include <snappy-c.h>
#include "proto/proto.h"

/* The densest element is a copy of 64 bytes in 3. */
enum { SNAPPY_RATIO_MAX = 22, SNAPPY_RATIO_SLACK = 64 };

errc snappy_declared(struct span in, size_t *n, struct err *err)
{
	/* libsnappy reads up to five bytes of varint; an empty body has no preamble. */
	if (in.n == 0 || snappy_uncompressed_length(in.p, in.n, n) != SNAPPY_OK)
		return err_id(err, ERRID_SNAPPY, ERR_INVALID, "not a snappy block: %zu bytes without a valid length in front", in.n);
	return OK;
}

errc snappy_decode(struct span in, size_t max_bytes, struct arena *arena, struct span *out, struct err *err)
{
	errc rc = OK;
	size_t n = 0;
	char *p = NULL;
	*out = (struct span){"", 0};
	TRY(snappy_declared(in, &n, err));
	if (n > max_bytes)
		return err_id(
			err, ERRID_DECODED_TOO_LARGE, ERR_LIMIT, "the body declares %zu bytes after decompression, %zu are allowed", n, max_bytes);
	if (n / SNAPPY_RATIO_MAX > in.n + SNAPPY_RATIO_SLACK)
		return err_id(err, ERRID_SNAPPY, ERR_INVALID, "not a snappy block: %zu bytes can't hold the %zu that they declare", in.n, n);
	p = arena_alloc(arena, n);
	CHECK(p, ERR_NOMEM, "no memory for %zu decompressed bytes", n);
	if (snappy_uncompress(in.p, in.n, p, &n) != SNAPPY_OK)
		return err_id(err, ERRID_SNAPPY, ERR_INVALID, "not a snappy block: damaged or cut off (%zu bytes, %zu declared)", in.n, n);
	*out = span_of(p, n);
fail:
	return rc;
}

errc snappy_encode(struct span in, struct buf *out, struct err *err)
{
	errc rc = OK;
	size_t n = snappy_max_compressed_length(in.n);
	CHECK(buf_reserve(out, n), ERR_NOMEM, "no memory to compress %zu bytes", in.n);
	CHECK(snappy_compress(in.p, in.n, (char *)out->p + out->n, &n) == SNAPPY_OK, ERR_INVALID, "snappy refuses to compress %zu bytes", in.n);
	out->n += n;
fail:
	return rc;
}
