/* cluster/trust.h - how one varve knows that it is another that speaks.
 *
 *     secret file:  X-Varve-Peer: v1 <ms> <nonce> <hmac>      HMAC-SHA256 over method, target, tenant, content type, ms, nonce and the body, hex
 *     TLS:          a client certificate that the server's web configuration demands and has verified, of the name that peers have (--peer.tls-name)
 *     both:         both are asked for
 *     neither:      only from loopback and private addresses; the log says so once
 *
 * A request is signed for a minute: clocks may differ by that much. Within it the same request may come twice, which is harmless for all that peers say to each other: writes are duplicates then,
 * and nothing else changes anything twice. Without a secret nothing is signed, and whoever is on the private network is believed.
 *
 * The secret file is read again when it changes. What it said before is believed for another ten minutes, and signed with for five, so that it can be changed on one node after the other within
 * five minutes, and nobody refuses anybody meanwhile.
 *
 * Any thread. Sources: RFC 2104, RFC 1918, RFC 4193, RFC 6598.
 */
#pragma once
#include "base/err.h"
#include "base/errid.h"
#include "base/span.h"

struct trust;
struct trust_config {
	const char *secret_file; /* --peer.secret-file; NULL: none. Borrowed. At least 16 bytes, white space at its end is not part of it */
	bool certificates;	 /* --peer.tls-cert-file is set, and the server demands certificates: a peer shows one */
	const char *
		name; /* --peer.tls-name: a DNS name that a peer's certificate has. NULL: every certificate that the server takes is a peer's. Borrowed */
};
/* ERR_INVALID: the file. */
CHECKED errc trust_open(const struct trust_config *cfg, struct trust **out, struct err *err);
void trust_close(struct trust *t); /* NULL is fine */
/* Every second or so, from one thread: the file, when it has changed. A bad one is logged and changes nothing. */
void trust_tick(struct trust *t);

/* What is signed. Empty spans where there is none. */
struct trust_words {
	struct span method, target; /* target: path and query, as they travel */
	struct span tenant, content_type, body;
};
enum { TRUST_HEADER_BYTES = 160 };
#define TRUST_HEADER "X-Varve-Peer"
/* The value of TRUST_HEADER; empty when there is no secret: then there is no such header. (Also when there is no memory: the peer refuses it then.) */
void trust_sign(struct trust *t, const struct trust_words *w, char out[TRUST_HEADER_BYTES]);

struct trust_claim {
	struct trust_words words;
	struct span header;	   /* as it came; p NULL: none */
	struct span authorization; /* the header of that name, only looked at by trust_check_order */
	struct span address;	   /* of the connection, "10.0.0.7:51234" or "[fd00::7]:51234" */
	bool certificate;	   /* it showed one that is valid, of the name that peers have */
};
/* ERR_DENIED: PEER_UNKNOWN (401: nothing shown that would make it a peer) or PEER_FORGED (403: what it shows is wrong, or too old). Logged with the address, at most once a second. */
CHECKED errc trust_check(struct trust *t, const struct trust_claim *c, struct err *err);
/* The same for orders that people give as well (PUT /-/ring, /-/drain): "Authorization: Bearer <secret>" is believed, too. */
CHECKED errc trust_check_order(struct trust *t, const struct trust_claim *c, struct err *err);
