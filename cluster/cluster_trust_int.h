/* cluster/cluster_trust_int.h - what trust shows to the link that asks it, and to its tests. */
#pragma once
#include "cluster/trust.h"

/* "127.0.0.1:80", "[::1]:80", with a port or without: loopback, or of the ranges of RFC 1918, 4193 and 6598. */
bool trust_address_private(struct span address);
const char *trust_peer_name(const struct trust *t); /* trust_config.name */
