/* base/limits.h - every limit has a name, a value and a reason here. What people tune has a flag (see varve --help-all);
 * the rest is fixed because a format, a peer or arithmetic fixes it.
 */
#pragma once
#include <stdint.h>

#define KIB UINT64_C(1024)
#define MIB (UINT64_C(1024) * KIB)
#define GIB (UINT64_C(1024) * MIB)

/* -- requests ------------------------------------------------------------------------------------------------------- */
#define LIMIT_INGEST_BODY_BYTES (32 * MIB) /* --ingest.max-body: what Prometheus' own receiver takes */
#define LIMIT_INGEST_DECODED_FACTOR                                                                                                                  \
	4 /* decompressed at most this many times the flag: real bodies shrink 3-12x, but large ones are split by senders long before */
#define LIMIT_INGEST_SERIES_PER_REQUEST 200000	   /* --ingest.max-series-per-request: 100x a sender's default batch */
#define LIMIT_INGEST_SAMPLES_PER_REQUEST 2000000   /* --ingest.max-samples-per-request: bounds the verdict arrays to 32 MiB */
#define LIMIT_INGEST_HISTOGRAMS_PER_REQUEST 100000 /* 50x a sender's default batch; --ingest.max-samples-per-request bounds them, too */
#define LIMIT_INGEST_HISTOGRAM_BYTES                                                                                                                 \
	(32 * MIB) /* buckets, spans and bounds of one request when decoded: the largest histogram there is, or 4 M buckets */
#define LIMIT_INGEST_EXEMPLARS_PER_REQUEST 200000
#define LIMIT_INGEST_EXEMPLAR_BYTES (16 * MIB) /* 2.0: of their labels in 1.0's form */
#define LIMIT_INGEST_METADATA_PER_REQUEST 200000
#define LIMIT_INGEST_SYMBOLS_PER_REQUEST (1 << 20) /* 2.0: a batch of 2,000 series has some thousand */
#define LIMIT_INGEST_LABEL_REFS (8 << 20)	   /* 2.0: of all series; 200,000 series of 20 labels */
#define LIMIT_INGEST_LABEL_BYTES (128 * MIB)	   /* 2.0: of all series' labels as 1.0 would send them, which a few bytes may stand for */
#define LIMIT_INGEST_INFLIGHT_BYTES (512 * MIB)	   /* --ingest.max-inflight: bodies and decoded bytes of all requests together */
#define LIMIT_HTTP_HEADER_BYTES (32 * KIB)	   /* request line and headers: cookies of a proxy fit, floods do not */
#define LIMIT_HTTP_FORM_BYTES (1 * MIB)		   /* a query API POST body: match[] lists of dashboards are below 100 kB */
#define LIMIT_HTTP_READ_BODY_BYTES (4 * MIB)	   /* a remote-read request, compressed */
#define LIMIT_HTTP_CONNECTIONS 4096		   /* --http.max-connections */
#define LIMIT_HTTP_IDLE_MS 60000		   /* --http.idle-timeout: also how long a body may stand still */
#define LIMIT_HTTP_REQUEST_MS 120000		   /* a request that is not complete after this is dropped (slow drip) */

#define LIMIT_HTTP_PARAMS 20000		   /* parameters of one query string or form */
#define LIMIT_HTTP_DISCARD_BYTES (1 * MIB) /* a refused body up to this is read away to keep the connection */
#define LIMIT_HTTP_LINGER_MS 2000	   /* how long a client may go on sending after it was refused and before the reset */
#define LIMIT_HTTP_LINGER_BYTES (64 * MIB)
#define LIMIT_HTTP_SLOW_READER_BYTES (64 * KIB)	  /* of an answer, taken per request time-out: else the client only pins memory */
#define LIMIT_HTTP_STREAM_BYTES (1 * MIB)	  /* how far a streamed answer runs ahead of its client */
#define LIMIT_HTTP_ANSWER_HEADER_BYTES (64 * KIB) /* headers of another server's answer */
#define LIMIT_HTTP_CONNECTIONS_PER_HOST 16	  /* of a sender to one peer, unless its owner says otherwise: further calls wait */
#define LIMIT_HTTP_KEPT 256			  /* idle connections of a sender: some to each of a hundred peers */
#define LIMIT_HTTP_KEPT_MS 50000 /* how long one is idle and used again: less than LIMIT_HTTP_IDLE_MS, or it races with its peer's closing it */
#define LIMIT_HTTP_HOSTS 1024	 /* hosts that a sender remembers the addresses of while it has no calls for them */
#define LIMIT_HTTP_RESOLVERS 4	 /* threads of a sender that ask for names, all of which a dead name service may hold */

/* -- labels --------------------------------------------------------------------------------------------------------- */
#define LIMIT_LABELS_PER_SERIES 64   /* --ingest.max-labels */
#define LIMIT_LABEL_NAME_BYTES 1024  /* --ingest.max-label-name */
#define LIMIT_LABEL_VALUE_BYTES 4096 /* --ingest.max-label-value: as VictoriaMetrics */
#define LIMIT_LABELS_DECODE 1024     /* label fields read before a series is refused, whatever the flag says */

/* -- exemplars and metadata ------------------------------------------------------------------------------------------ */
#define LIMIT_EXEMPLARS 10000000	/* --exemplars.max at most: a gigabyte; a checkpoint of the log holds them all */
#define LIMIT_METADATA_FAMILIES 1000000 /* --metadata.max at most; real tenants have some thousand */

/* -- log ------------------------------------------------------------------------------------------------------------ */
#define LIMIT_WAL_SEGMENT_BYTES (128 * MIB) /* --wal.segment-size: the reference's; 50 M samples at 2.5 B */
#define LIMIT_WAL_SEGMENT_MIN (4 * KIB)	    /* a file system block; what is larger than a segment gets a larger one */
#define LIMIT_WAL_SEGMENT_MAX (4 * GIB)	    /* a segment is the step in which the log shrinks */
#define LIMIT_WAL_FRAME_BYTES (4 * MIB)	    /* a frame's payload before compression: the most that one damaged frame can cost */
#define LIMIT_WAL_RECORD_BYTES (256 * MIB)  /* one request's records before they are split over frames */
#define LIMIT_WAL_TICKETS 65536		    /* requests between reserve and durable; above the connections allowed */
#define LIMIT_WAL_WAITING_BYTES (512 * MIB) /* buffers of all those requests; one alone may always wait */
#define WAL_COPY_DISTANCE_BYTES (1 * MIB)   /* two copies of a definition are at least this far apart in the log */

/* -- blocks --------------------------------------------------------------------------------------------------------- */
#define LIMIT_CHUNK_SEGMENT_BYTES (512 * MIB) /* the reference's segment size */
#define LIMIT_INDEX_BYTES (64 * GIB)	      /* 32-bit series references times 16 */
#define LIMIT_CHUNK_BYTES (16 * MIB)	      /* one chunk's payload when read: histogram chunks of others are far below */
#define LIMIT_META_JSON_BYTES (16 * MIB)      /* a merged block of years lists its sources */
#define LIMIT_TOMBSTONES_BYTES (256 * MIB)
#define LIMIT_BLOCK_OPEN_FILES 8		/* descriptors kept for all local blocks together: reads are large, an open costs 2 us */
#define LIMIT_DIR_LISTING_BYTES (64 * MIB)	/* names of one directory: a million blocks */
#define LIMIT_INDEX_ENTRY_BYTES (64 * MIB)	/* one symbol, series or table entry when read; a series of a million chunks is below 16 MiB */
#define LIMIT_INDEX_TEXT_BYTES (1 * GIB)	/* names and sampled values of an open index; a block of 1 M series has 3 MiB of them */
#define LIMIT_HISTOGRAM_MEMORY_BYTES (64 * MIB) /* to decode or compare one: a million buckets of both sides at 40 bytes */
#define LIMIT_HISTOGRAM_PACKED_BYTES                                                                                                                 \
	(128 * KIB)			  /* one that is stored, as the log holds it: 160 buckets are 400 bytes; bounds what a chunk of ten takes */
#define LIMIT_HISTOGRAM_BUCKETS (1 << 20) /* of one side: the finest schema over all of float64 has 537,088 */

/* -- queries -------------------------------------------------------------------------------------------------------- */
#define LIMIT_QUERY_CONCURRENCY 20		  /* --query.max-concurrency, as Prometheus */
#define LIMIT_QUERY_SAMPLES 50000000		  /* --query.max-samples of one remote-read SAMPLES answer, as Prometheus */
#define LIMIT_QUERY_MEMORY_BYTES (1 * GIB)	  /* --query.max-memory of one query */
#define LIMIT_QUERY_REGEX_BYTES (64 * KIB)	  /* pattern text */
#define LIMIT_QUERY_REGEX_MEMORY_BYTES (32 * MIB) /* of one compiled pattern; above it RE2 turns to its slow, small machine */
#define LIMIT_QUERY_REGEX_SET 65536		  /* literals that a pattern is taken apart into before the regex engine gets it */
#define LIMIT_QUERY_MATCHERS 256
#define LIMIT_READ_FRAME_BYTES (1 * MIB)   /* target of a streamed remote-read frame, as the reference */
#define LIMIT_READ_QUERIES 1024		   /* of one remote-read request; Prometheus sends one */
#define LIMIT_READ_DECODE_BYTES (64 * MIB) /* memory to decode one remote-read request: protobuf-c needs up to 50 bytes for one of the body */
#define LIMIT_QUERY_PEER_TIMEOUT_MS 10000  /* --query.peer-timeout: how long peers may keep a read waiting */
#define LIMIT_QUERY_PEER_CONNECTIONS 64	   /* of one node's reads to one peer: three times the reads that run at once */
#define LIMIT_QUERY_REPLICA_LABELS 32	   /* --query.replica-label: each is looked for in each block */

/* -- bucket --------------------------------------------------------------------------------------------------------- */
#define LIMIT_S3_PART_BYTES (16 * MIB) /* part_size: 10,000 parts = 160 GB an object */
#define LIMIT_S3_XML_BYTES (16 * MIB)  /* one LIST page is below 1 MiB */
#define LIMIT_S3_ATTEMPTS 10
#define LIMIT_S3_RETRY_MS 60000		    /* no attempt of a call starts later than this after the first: callers wait and try again themselves */
#define LIMIT_S3_BACKOFF_MS 100		    /* full jitter over this, doubled each time ... */
#define LIMIT_S3_BACKOFF_MAX_MS 5000	    /* ... up to this; Retry-After may ask for more */
#define LIMIT_S3_IDLE_MS 30000		    /* http_config.response_header_timeout: no byte for this long */
#define LIMIT_S3_CONNECT_MS 10000	    /* http_config.tls_handshake_timeout */
#define LIMIT_S3_PARTS 10000		    /* of one upload, by the protocol; above it parts grow */
#define LIMIT_S3_PART_MIN (5 * MIB)	    /* by the protocol, but for the last one */
#define LIMIT_S3_PART_MAX (5 * GIB)	    /* by the protocol: also the most that one PUT takes */
#define LIMIT_S3_ERROR_BYTES (64 * KIB)	    /* an error's body: a kilobyte in practice */
#define LIMIT_S3_XML_DEPTH 16		    /* answers are 4 deep */
#define LIMIT_S3_XML_TEXT_BYTES (8 * KIB)   /* one element: a key of 1,024 bytes, escaped */
#define LIMIT_BUCKET_KEY_BYTES 1024	    /* by the protocol, prefix included */
#define LIMIT_BUCKET_DIR_DEPTH 32	    /* directories below a directory bucket's root; stops loops of symbolic links */
#define LIMIT_BUCKET_LIST_BYTES (256 * MIB) /* names of one directory: two million blocks */
#define LIMIT_CACHE_DIR_BYTES (2 * GIB)	    /* --cache.dir-size */
#define LIMIT_CONFIG_BYTES (8 * MIB)	    /* any YAML file: a limits file with a paragraph for each of 50,000 tenants */
#define LIMIT_YAML_DEPTH 32		    /* levels of nesting in a YAML file: real ones have five, the reader recurses */

/* -- ring ----------------------------------------------------------------------------------------------------------- */
#define LIMIT_RING_FILE_BYTES (8 * MIB) /* a hashring file: a ConfigMap is at most 1 MiB */
#define LIMIT_RING_VALUES 400000	/* JSON values in it; bounds the tree to 32 MiB */
#define LIMIT_RING_JSON_DEPTH 16	/* levels of nesting: real files have five, the reader recurses */
#define LIMIT_RING_JSON_MEMBERS 1000	/* of one object, each compared with those before it */
#define LIMIT_RINGS 1024		/* rings of one file: each has tables of its own */
#define LIMIT_RING_ENDPOINTS 2000	/* of all rings of a file: 2 M sections, 50 MiB with factor 3 */
#define LIMIT_RING_ADDRESS_BYTES 300	/* a DNS name has 253 */
#define LIMIT_RING_NAME_BYTES 256	/* names of rings, zones; patterns of tenants */
#define LIMIT_RING_TENANTS 200000	/* names and patterns of all rings */
#define LIMIT_RING_PATTERNS 1000	/* globs of all rings: a request's tenant is held against them one by one */
#define LIMIT_RING_FACTOR 16		/* --replication-factor: copies of a sample; beyond 5 nobody goes */
#define LIMIT_RING_SHARDS_BYTES                                                                                                                      \
	(24 * MIB)		     /* of one ring's sub-rings that are kept, 200 tenants with shards of 6; made again in less than a millisecond */
#define LIMIT_RING_SHARDS_KEPT 10000 /* what cache_size of a file may ask for beyond that */

/* -- peers ---------------------------------------------------------------------------------------------------------- */
#define LIMIT_PEER_REQUEST_BYTES (256 * MIB)	    /* one peer's share of a request, decompressed: bodies of --ingest.max-body at 4 x, twice over */
#define LIMIT_PEER_SAMPLES 100000000		    /* in one section: what --ingest.max-samples-per-request may be at most */
#define LIMIT_PEER_SECTIONS 65536		    /* tenants in one request: split by label there may be many */
#define LIMIT_PEER_INFLIGHT_BYTES (64 * MIB)	    /* --peer.max-inflight: sent to one peer and not answered; a slow one's share of memory */
#define LIMIT_PEER_FAILURES 5			    /* in a row: then a peer is left alone ... */
#define LIMIT_PEER_BACKOFF_MS 100		    /* ... for this long, and twice as long each time that a probe fails ... */
#define LIMIT_PEER_BACKOFF_MAX_MS 500		    /* ... up to this: as soon is one used that is back, and the next may be restarted */
#define LIMIT_PEER_PORT 19291U			    /* of a ring's address that has none: --http.address' own */
#define LIMIT_PEER_SECRET_BYTES 4096		    /* --peer.secret-file: a line, however it was made */
#define LIMIT_ROSTER_NODES 10000		    /* nodes that are remembered: those of the rings in force, and four times as many that left */
#define LIMIT_ROSTER_FILE_BYTES (8 * MIB)	    /* of as many nodes, 400 bytes each */
#define LIMIT_ROSTER_ASK_MS 1000		    /* between two questions to a node that answers */
#define LIMIT_ROSTER_ASK_MAX_MS 5000		    /* to one that does not */
#define LIMIT_ROSTER_ANSWER_MS 2000		    /* it has this long */
#define LIMIT_ROSTER_ANSWER_BYTES (4 * MIB)	    /* 10,000 addresses */
#define LIMIT_ROSTER_ASKED 32			    /* questions on their way at the same time */
#define LIMIT_ROSTER_REMEMBER_MS (366 * 86400000LL) /* --ring.remember, and what another node's answer may ask for */
#define LIMIT_PEERS_NAMES 1000			    /* --peers: what it names */
#define LIMIT_PEERS_FOUND LIMIT_RING_ENDPOINTS	    /* and what these names stand for */
#define LIMIT_PEERS_LOOK_MS 10000		    /* names are looked up so often */
#define LIMIT_RATES_BYTES (8 * MIB)		    /* what one node tells of its tenants' rates: 60,000 of the longest names */
#define LIMIT_RATES_NODES 1024			    /* that tell a board */
#define LIMIT_RATES_BOARDS 3			    /* of the rings' nodes that are told: one that answers is enough */
#define LIMIT_PEERS_THINK_MS 1000		    /* and what they say is thought about so often, besides at each change */

/* -- hints ---------------------------------------------------------------------------------------------------------- */
#define LIMIT_HINTS_BYTES (1 * GIB) /* --hints.max-size: as much as the log of a busy node keeps */
#define LIMIT_HINTS_RATE (8 * MIB)  /* --hints.rate: who comes back has writes of its own to do */
#define LIMIT_HINTS_QUEUE_BYTES                                                                                                                      \
	(16 * MIB) /* wait for the disk; as many are on their way to nodes that keep them, and as many wait to be told. One alone may always */
#define LIMIT_HINTS_SEGMENT_BYTES (8 * MIB)   /* the step in which a log shrinks: a file */
#define LIMIT_HINTS_PEERS 2000		      /* nodes that hints are kept for: as many as rings have */
#define LIMIT_HINTS_BATCH_BYTES (256 * KIB)   /* frames that go as one request, as they are kept ... */
#define LIMIT_HINTS_BATCH_RAW_BYTES (4 * MIB) /* ... and decompressed: a large frame goes alone */
#define LIMIT_HINTS_BATCH_FRAMES 64
#define LIMIT_HINTS_FLIGHTS 16			 /* nodes that are brought hints at the same time, for their memory */
#define LIMIT_HINTS_HAND_MS 5000		 /* of asking a node to keep one */
#define LIMIT_HINTS_TIMEOUT_MS 30000		 /* of one delivery: a node that has just come back has much to do */
#define LIMIT_HINTS_UNREADABLE_MS INT64_C(60000) /* a file that can't be read for so long is given up */

/* -- repair --------------------------------------------------------------------------------------------------------- */
#define LIMIT_REPAIR_BYTES_PER_S (32 * MIB)  /* --repair.rate: 1.7 M samples a second, a sixth of a core on either node */
#define LIMIT_REPAIR_LATE_MS 60000	     /* so late may a sender be whose samples belong to a new ring already */
#define LIMIT_REPAIR_SETTLE_MS 15000	     /* samples of the last so long are on their way: senders are some seconds late, and hints are */
#define LIMIT_REPAIR_ANSWER_BYTES (64 * MIB) /* of one question: a piece is a quarter of a megabyte, or one histogram; a page of windows less */
#define LIMIT_REPAIR_WINDOWS 1000000	     /* that one pass compares: 10,000 tenants of a fleet of 30, three windows each */
#define LIMIT_REPAIR_ASK_MS 10000	     /* for an answer that takes no work */
#define LIMIT_REPAIR_DIGEST_MS 120000	     /* for a digest: 50 M samples a second and core, working half of the time */
#define LIMIT_REPAIR_RETRY_MS 100	     /* a question is asked again after this, and three times as long each time */
#define LIMIT_REPAIR_RETRY_MAX_MS 5000	     /* what can't be stored for want of memory or disk waits this long at most */
#define LIMIT_REPAIR_AGAIN_MS 5000	     /* a pass that failed is begun again after this, and twice as long each time ... */
#define LIMIT_REPAIR_AGAIN_MAX_MS 300000     /* ... up to this */
#define LIMIT_REPAIR_OWED_MS 30000	     /* how often each peer is asked what it owes */
#define LIMIT_REPAIR_HINTS_MS 600000	     /* hints are waited for this long: then what is missing is taken from windows */

/* -- one picture of the bucket ------------------------------------------------------------------------------------- */
#define LIMIT_FEED_KEPT 100000		  /* changes that are kept for peers: a day of 1,000 tenants; who is farther behind takes a snapshot */
#define LIMIT_FEED_CHANGES 1000		  /* of one answer */
#define LIMIT_FEED_ANSWER_BYTES (1 * MIB) /* of one answer, but one change alone always goes */
#define LIMIT_FEED_REASON_BYTES 4096	  /* of a quarantine; longer ones are cut */
#define LIMIT_FEED_RECORD_BYTES (2 * LIMIT_META_JSON_BYTES + 8 * KIB) /* one change: meta.json, and what objects there are */
#define LIMIT_FEED_QUEUED_BYTES (96 * MIB)			      /* answers that wait to be applied; what is more is asked for again */
#define LIMIT_FEED_POLLS 256		      /* peers that are asked at the same time: of more, each is held for a shorter while */
#define LIMIT_FEED_HELD 4096		      /* questions that wait for a change; more are answered at once */
#define LIMIT_FEED_WAIT_MS 1500		      /* how long one waits: a peer that went away unnoticed, and is back, is heard within two seconds */
#define LIMIT_FEED_SLACK_MS 2000	      /* an answer has this much longer than the question may be held */
#define LIMIT_FEED_BACKOFF_MS 100	      /* after a failed question, and twice as long each time ... */
#define LIMIT_FEED_BACKOFF_MAX_MS 1000	      /* ... up to this */
#define LIMIT_FEED_NODES 65536		      /* feeds followed, over all time */
#define LIMIT_FEED_GONE_MS INT64_C(604800000) /* a week: accounts of a block that is gone come late by minutes */
#define LIMIT_SNAPSHOT_PAGE_BYTES (1 * MIB)   /* of a snapshot, but one block alone always has a page */
#define LIMIT_SNAPSHOT_BYTES (8 * GIB)	      /* of a snapshot: two million blocks with a long meta.json each */

/* -- ring controller ------------------------------------------------------------------------------------------------ */
#define LIMIT_KUBE_PAGE 500		     /* objects of one list request: a Pod has some 10 KiB */
#define LIMIT_KUBE_ANSWER_BYTES (64 * MIB)   /* of one answer that is not a watch */
#define LIMIT_KUBE_LINE_BYTES (8 * MIB)	     /* one event of a watch: an object is at most 1.5 MiB in etcd */
#define LIMIT_KUBE_OBJECTS 20000	     /* of one kind: ten times the endpoints that rings may have */
#define LIMIT_KUBE_OBJECT_BYTES (2 * MIB)    /* what is kept of one: a ConfigMap's text */
#define LIMIT_KUBE_TOKEN_BYTES (64 * KIB)    /* a service account's token: 1 to 2 KiB */
#define LIMIT_CONTROL_PLAN_BYTES (512 * MIB) /* one plan over all that is seen: 2 KiB a Pod, and the rings as text several times */
#define LIMIT_CONTROL_ANSWER_BYTES (4 * MIB) /* of a member to a question: whom it remembers */
#define LIMIT_CONTROL_ASKERS 16		     /* members spoken with at the same time */
#define LIMIT_CONTROL_MEMBER_MS 2000	     /* one question to a member: who takes longer does not serve */
