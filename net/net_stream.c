/* net/net_stream.c - answers of unknown length: a worker writes, the client reads, and neither runs far from the other.
 *
 *     worker: http_stream_write ─▶ (deflate) ─▶ ring of LIMIT_HTTP_STREAM_BYTES ─▶ stream_read: loop ─▶ socket
 *
 * The writer sleeps while the ring is full; the connection sleeps (is suspended) while the ring is empty, and is woken when STREAM_WAKE_BYTES are
 * there or the stream ends: a wake-up costs a system call, so small writes are gathered.
 *
 * Two sides hold the request: the loop until the request is over, the worker until http_stream_end. When the client goes away the loop marks the
 * stream as aborted; from then on `mhd` must not be touched. While the connection sleeps it cannot go away, so waking it under `mu` is safe.
 */
#include <poll.h>
#include <stdlib.h>
#include <zlib.h>
#include "net/net_int.h"

enum { STREAM_WAKE_BYTES = 32 * 1024, STREAM_BLOCK_BYTES = 32 * 1024 };

struct net_stream {
	pthread_mutex_t mu;
	pthread_cond_t room;
	uint8_t *ring;
	size_t start, n;
	bool sleeping; /* the connection is suspended, waiting for bytes */
	bool aborted;  /* the loop has let go of the connection */
	bool ended, ok;
	/* writer only */
	bool gzip, head;
	z_stream z;
};

void stream_free(struct net_stream *st)
{
	if (!st)
		return;
	if (st->gzip)
		deflateEnd(&st->z);
	pthread_cond_destroy(&st->room);
	pthread_mutex_destroy(&st->mu);
	free(st->ring);
	free(st);
}

static void stream_wake_locked(struct http_request *r)
{
	struct net_stream *st = r->stream;
	if (!st->sleeping || st->aborted)
		return;
	st->sleeping = false;
	/* the request cannot be over before the loop has seen this, and this thread holds a reference */
	request_resume(r);
}

/* On the loop: bytes for the socket. */
static ssize_t stream_read(void *cls, uint64_t pos, char *buf, size_t max)
{
	(void)pos;
	struct http_request *r = cls;
	struct net_stream *st = r->stream;
	ssize_t got;
	pthread_mutex_lock(&st->mu);
	if (r->server->doomed || (st->ended && !st->ok)) {
		got = MHD_CONTENT_READER_END_WITH_ERROR;
	} else if (st->n) {
		size_t n = st->n < max ? st->n : max;
		size_t run = (size_t)LIMIT_HTTP_STREAM_BYTES - st->start;
		if (n > run)
			n = run;
		memcpy(buf, st->ring + st->start, n);
		st->start = (st->start + n) % LIMIT_HTTP_STREAM_BYTES;
		st->n -= n;
		r->answer_bytes += n;
		atomic_fetch_add_explicit(&r->conn->sent_bytes, n, memory_order_relaxed);
		pthread_cond_signal(&st->room);
		got = (ssize_t)n;
	} else if (st->ended) {
		got = MHD_CONTENT_READER_END_OF_STREAM;
	} else {
		st->sleeping = true;
		MHD_suspend_connection(r->mhd);
		got = 0;
	}
	pthread_mutex_unlock(&st->mu);
	if (got == MHD_CONTENT_READER_END_WITH_ERROR) {
		/* HTTP/1.0 has no other way to say "cut off" than a reset */
		struct linger now = {.l_onoff = 1, .l_linger = 0};
		setsockopt(r->conn->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
	}
	if (got == 0)
		conn_phase(r->conn, CONN_RUNNING);
	else if (atomic_load_explicit(&r->conn->phase, memory_order_relaxed) != CONN_ANSWERING)
		conn_phase(r->conn, CONN_ANSWERING);
	return got;
}

static void stream_read_over(void *cls)
{
	request_drop(cls);
}

errc http_stream_begin(struct http_request *r, int status, const char *content_type, struct err *err)
{
	ASSERT(r->deferred && !r->answered && !r->stream);
	errc rc = OK;
	struct MHD_Response *resp = NULL;
	struct net_stream *st = calloc(1, sizeof *st);
	CHECK(st, ERR_NOMEM, "no memory for an answer");
	pthread_mutex_init(&st->mu, NULL);
	pthread_cond_init(&st->room, NULL);
	st->head = r->head;
	st->ring = malloc(LIMIT_HTTP_STREAM_BYTES);
	CHECK(st->ring, ERR_NOMEM, "no memory for an answer's buffer");
	if (answer_can_gzip(r, status)) {
		CHECK(deflateInit2(&st->z, 1, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK, ERR_NOMEM, "no memory to compress an answer");
		st->gzip = true;
	}
	resp = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES, stream_read, r, stream_read_over);
	CHECK(resp, ERR_NOMEM, "no memory for an answer");
	/* one for the response's reader, one for the worker; the loop has its own */
	atomic_fetch_add(&r->refs, 2);
	r->stream = st;
	if (st->gzip)
		MHD_add_response_header(resp, "Content-Encoding", "gzip");
	answer_headers(r, resp, status, content_type);
	answer_set(r, resp, status, 0);
	return OK;
fail:
	stream_free(st);
	return rc;
}

static errc stream_put(struct http_request *r, const uint8_t *p, size_t n, struct err *err)
{
	errc rc = OK;
	struct net_stream *st = r->stream;
	pthread_mutex_lock(&st->mu);
	while (n) {
		while (st->n == LIMIT_HTTP_STREAM_BYTES && !st->aborted && !r->server->doomed)
			pthread_cond_wait(&st->room, &st->mu);
		CHECK(!st->aborted, ERR_CANCELED, "the client went away");
		CHECK(!r->server->doomed, ERR_CANCELED, "the server is stopping");
		size_t at = (st->start + st->n) % LIMIT_HTTP_STREAM_BYTES;
		size_t run = (at < st->start ? st->start : (size_t)LIMIT_HTTP_STREAM_BYTES) - at;
		size_t room = (size_t)LIMIT_HTTP_STREAM_BYTES - st->n;
		size_t k = n < run ? n : run;
		if (k > room)
			k = room;
		memcpy(st->ring + at, p, k);
		st->n += k;
		p += k;
		n -= k;
		if (st->n >= STREAM_WAKE_BYTES)
			stream_wake_locked(r);
	}
fail:
	pthread_mutex_unlock(&st->mu);
	return rc;
}

static errc stream_deflate(struct http_request *r, struct span data, int flush, struct err *err)
{
	errc rc = OK;
	struct net_stream *st = r->stream;
	uint8_t out[16384];
	do {
		uInt chunk = data.n > (1u << 30) ? 1u << 30 : (uInt)data.n;
		st->z.next_in = (Bytef *)(uintptr_t)data.p;
		st->z.avail_in = chunk;
		bool last = chunk == data.n;
		int z;
		do {
			st->z.next_out = out;
			st->z.avail_out = sizeof out;
			z = deflate(&st->z, last ? flush : Z_NO_FLUSH);
			ASSERT(z != Z_STREAM_ERROR);
			TRY(stream_put(r, out, sizeof out - st->z.avail_out, err));
		} while (st->z.avail_out == 0);
		data = span_of(data.p + chunk, data.n - chunk);
	} while (data.n);
fail:
	return rc;
}

errc http_stream_write(struct http_request *r, struct span data, struct err *err)
{
	ASSERT(r->stream);
	if (r->stream->head)
		return err_set(err, ERR_CANCELED, "HEAD wants no body");
	if (r->stream->gzip)
		return stream_deflate(r, data, Z_NO_FLUSH, err);
	return stream_put(r, (const uint8_t *)data.p, data.n, err);
}

void http_stream_flush(struct http_request *r)
{
	struct net_stream *st = r->stream;
	ASSERT(st);
	pthread_mutex_lock(&st->mu);
	if (st->n)
		stream_wake_locked(r);
	pthread_mutex_unlock(&st->mu);
}

void http_stream_end(struct http_request *r, bool ok)
{
	struct net_stream *st = r->stream;
	ASSERT(st);
	struct err err = {0};
	if (ok && st->gzip && !st->head && stream_deflate(r, SPAN(""), Z_FINISH, &err))
		ok = false;
	worker_answered(r);
	pthread_mutex_lock(&st->mu);
	st->ended = true;
	st->ok = ok;
	stream_wake_locked(r);
	pthread_mutex_unlock(&st->mu);
	request_drop(r);
}

void stream_abort(struct http_request *r)
{
	struct net_stream *st = r->stream;
	if (!st)
		return;
	pthread_mutex_lock(&st->mu);
	st->aborted = true;
	pthread_cond_broadcast(&st->room);
	pthread_mutex_unlock(&st->mu);
}

bool stream_client_gone(struct http_request *r)
{
	struct net_stream *st = r->stream;
	pthread_mutex_lock(&st->mu);
	bool gone = st->aborted;
	if (!gone && st->sleeping) {
		struct pollfd p = {.fd = r->conn->fd, .events = POLLRDHUP};
		gone = poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
	}
	pthread_mutex_unlock(&st->mu);
	return gone;
}
