/* block/block_out.c - a file written front to back through one buffer; its SHA-256 and the CRC of the open section are taken from
 * the buffer before it goes to disk, so nothing is ever read again.
 *
 * What was written is sent to the disk piece by piece, and never more than two pieces are on their way: the sync at the end finds little, and no other file's sync (the
 * log's) waits behind a whole block.
 */
#include <stdlib.h>
#include "base/io.h"
#include "block/block_write_int.h"

errc block_out_init(struct block_out *o, struct err *err)
{
	*o = (struct block_out){.fd = -1};
	o->buf = malloc(BLOCK_OUT_BUF_BYTES);
	o->sha = EVP_MD_CTX_new();
	if (o->buf && o->sha)
		return OK;
	block_out_free(o);
	return err_set(err, ERR_NOMEM, "block writer: no memory for a buffer");
}

static char *path_join(const char *dir, const char *name)
{
	size_t n_dir = strlen(dir), n_name = strlen(name);
	char *path = malloc(n_dir + n_name + 2);
	if (path) {
		memcpy(path, dir, n_dir);
		path[n_dir] = '/';
		memcpy(path + n_dir + 1, name, n_name + 1);
	}
	return path;
}

errc block_out_open(struct block_out *o, const char *dir, const char *name, struct err *err)
{
	ASSERT(o->fd < 0);
	free(o->path);
	o->path = path_join(dir, name);
	o->written_bytes = 0;
	o->sent_bytes = 0;
	o->n_buf = 0;
	o->crc_open = false;
	o->failed = (struct err){0};
	if (!o->path || !EVP_DigestInit_ex(o->sha, EVP_sha256(), NULL))
		return err_set(err, ERR_NOMEM, "%s/%s: no memory to write it", dir, name);
	return io_open(o->path, IO_WRITE | IO_CREATE | IO_EXCL, &o->fd, err);
}

static void piece_write(struct block_out *o, const void *p, size_t n)
{
	if (o->failed.code == OK && !EVP_DigestUpdate(o->sha, p, n))
		err_set(&o->failed, ERR_NOMEM, "%s: SHA-256 failed", o->path);
	if (o->failed.code == OK && io_pwrite(o->fd, p, n, o->written_bytes, &o->failed) != OK)
		err_wrap(&o->failed, "%s", o->path);
	o->written_bytes += n;
	for (; o->failed.code == OK && o->written_bytes - o->sent_bytes >= BLOCK_OUT_SENT_BYTES; o->sent_bytes += BLOCK_OUT_SENT_BYTES) {
		errc rc = io_write_out(o->fd, o->sent_bytes, BLOCK_OUT_SENT_BYTES, false, &o->failed);
		if (rc == OK && o->sent_bytes > 0)
			rc = io_write_out(o->fd, o->sent_bytes - BLOCK_OUT_SENT_BYTES, BLOCK_OUT_SENT_BYTES, true, &o->failed);
		if (rc != OK)
			err_wrap(&o->failed, "%s", o->path);
	}
}

void block_out_flush(struct block_out *o)
{
	if (o->crc_open) {
		o->crc = crc32c(o->crc, o->buf + o->crc_from, o->n_buf - o->crc_from);
		o->crc_from = 0;
	}
	if (o->n_buf > 0)
		piece_write(o, o->buf, o->n_buf);
	o->n_buf = 0;
}

void block_out_put(struct block_out *o, const void *p, size_t n)
{
	if (BLOCK_OUT_BUF_BYTES - o->n_buf < n)
		block_out_flush(o);
	if (n <= BLOCK_OUT_BUF_BYTES) {
		if (n > 0)
			memcpy(o->buf + o->n_buf, p, n);
		o->n_buf += n;
		return;
	}
	if (o->crc_open)
		o->crc = crc32c(o->crc, p, n);
	piece_write(o, p, n);
}

errc block_out_check(const struct block_out *o, struct err *err)
{
	if (LIKELY(o->failed.code == OK))
		return OK;
	return err_set(err, o->failed.code, "%s", o->failed.msg);
}

errc block_out_finish(struct block_out *o, uint64_t *size_bytes, uint8_t sha256[32], struct err *err)
{
	errc rc = OK;
	unsigned n = 0;
	block_out_flush(o);
	TRY(block_out_check(o, err));
	rc = io_fsync(o->fd, err);
	if (rc != OK) {
		err_wrap(err, "%s", o->path);
		goto fail;
	}
	CHECK(EVP_DigestFinal_ex(o->sha, sha256, &n) && n == 32, ERR_NOMEM, "%s: SHA-256 failed", o->path);
	*size_bytes = o->written_bytes;
fail:
	io_close(o->fd);
	o->fd = -1;
	return rc;
}

void block_out_free(struct block_out *o)
{
	io_close(o->fd);
	EVP_MD_CTX_free(o->sha);
	free(o->buf);
	free(o->path);
	*o = (struct block_out){.fd = -1};
}
