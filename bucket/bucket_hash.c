/* bucket/bucket_hash.c - SHA-256, MD5 and CRC-32C of what goes to a bucket, and the HMAC that signs it; all on OpenSSL.
 *
 * Algorithms are fetched once per process: a fetch walks the providers under a lock and costs more than hashing a small object.
 */
#include <pthread.h>
#include <openssl/evp.h>
#include <openssl/core_names.h>
#include "bucket/bucket_int.h"

static pthread_once_t fetch_once = PTHREAD_ONCE_INIT;
static EVP_MD *md_sha256, *md_md5; /* md5 stays NULL under a FIPS provider */
static EVP_MAC *mac_hmac;

static void fetch_all(void)
{
	md_sha256 = EVP_MD_fetch(NULL, "SHA2-256", NULL);
	md_md5 = EVP_MD_fetch(NULL, "MD5", NULL);
	mac_hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);
}

static errc fetched(struct err *err)
{
	pthread_once(&fetch_once, fetch_all);
	if (!md_sha256 || !mac_hmac)
		return err_set(err, ERR_UNSUPPORTED, "OpenSSL has no SHA-256 or HMAC");
	return OK;
}

errc bucket_hash_begin(struct bucket_hash *h, bool md5, struct err *err)
{
	errc rc = OK;
	*h = (struct bucket_hash){0};
	TRY(fetched(err));
	h->sha256 = EVP_MD_CTX_new();
	CHECK(h->sha256 && EVP_DigestInit_ex2(h->sha256, md_sha256, NULL) == 1, ERR_NOMEM, "sha-256 of an object: out of memory");
	if (md5 && md_md5) {
		h->md5 = EVP_MD_CTX_new();
		CHECK(h->md5 && EVP_DigestInit_ex2(h->md5, md_md5, NULL) == 1, ERR_NOMEM, "md5 of an object: out of memory");
	}
	return OK;
fail:
	bucket_hash_drop(h);
	return rc;
}

errc bucket_hash_add(struct bucket_hash *h, const void *p, size_t n, struct err *err)
{
	if (n == 0)
		return OK;
	if (EVP_DigestUpdate(h->sha256, p, n) != 1 || (h->md5 && EVP_DigestUpdate(h->md5, p, n) != 1))
		return err_set(err, ERR_NOMEM, "hashing an object failed");
	h->crc32c = crc32c(h->crc32c, p, n);
	h->size_bytes += n;
	return OK;
}

errc bucket_hash_end(struct bucket_hash *h, struct bucket_digest *out, struct err *err)
{
	*out = (struct bucket_digest){.crc32c = h->crc32c, .size_bytes = h->size_bytes, .has_md5 = h->md5 != NULL};
	if (EVP_DigestFinal_ex(h->sha256, out->sha256, NULL) != 1 || (h->md5 && EVP_DigestFinal_ex(h->md5, out->md5, NULL) != 1))
		return err_set(err, ERR_NOMEM, "hashing an object failed");
	return OK;
}

void bucket_hash_drop(struct bucket_hash *h)
{
	EVP_MD_CTX_free(h->sha256);
	EVP_MD_CTX_free(h->md5);
	h->sha256 = h->md5 = NULL;
}

errc bucket_hash_span(struct span s, bool md5, struct bucket_digest *out, struct err *err)
{
	errc rc = OK;
	struct bucket_hash h;
	TRY(bucket_hash_begin(&h, md5, err));
	rc = bucket_hash_add(&h, s.p, s.n, err);
	if (!rc)
		rc = bucket_hash_end(&h, out, err);
	bucket_hash_drop(&h);
fail:
	return rc;
}

errc bucket_hmac_sha256(const void *key, size_t key_n, const void *p, size_t n, uint8_t out[SHA256_BYTES], struct err *err)
{
	errc rc = OK;
	EVP_MAC_CTX *ctx = NULL;
	char digest[] = "SHA2-256";
	OSSL_PARAM params[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0), OSSL_PARAM_construct_end()};
	size_t out_n = 0;

	TRY(fetched(err));
	ctx = EVP_MAC_CTX_new(mac_hmac);
	CHECK(ctx && EVP_MAC_init(ctx, key, key_n, params) == 1 && EVP_MAC_update(ctx, p, n) == 1 &&
			EVP_MAC_final(ctx, out, &out_n, SHA256_BYTES) == 1,
		ERR_NOMEM, "HMAC-SHA256 failed");
	ASSERT(out_n == SHA256_BYTES);
fail:
	EVP_MAC_CTX_free(ctx);
	return rc;
}

void bucket_hex(const uint8_t *p, size_t n, char *out)
{
	static const char digits[] = "0123456789abcdef";
	for (size_t i = 0; i < n; i++) {
		out[2 * i] = digits[p[i] >> 4];
		out[2 * i + 1] = digits[p[i] & 15];
	}
	out[2 * n] = 0;
}

void bucket_base64(const uint8_t *p, size_t n, char *out)
{
	ASSERT(n <= 64);
	EVP_EncodeBlock((unsigned char *)out, p, (int)n);
}
