-- bucket/catalog_schema.sql - the catalog: DATA_DIR/catalog.sqlite. Version 2 (facts.schema and user_version say the same).
--
-- Three separate things: what the bucket holds (blocks, block_sources: a cache of the meta.json files), what this node has not finished
-- (local_blocks: also found again from the directories), and what changed and how far peers were followed (block_versions, feed, followed).
--
-- Times are milliseconds since 1970, intervals are [min_time, max_time). Every row of blocks and local_blocks carries a CRC-32C over
-- its other columns in the order of this file (docs/format/catalog.md says how); a mismatch means: set the file aside and rebuild.

CREATE TABLE facts (
    name  TEXT PRIMARY KEY,      -- schema; complete: '1' once a whole audit of the bucket has been read in; feed: the name of this file's feed, a ULID;
                                 -- digest: of the live blocks, and their number; owed: '1' when changes were missed that only an audit can find
    value TEXT NOT NULL
) STRICT;

-- What the bucket holds: one row per directory with a meta.json.
CREATE TABLE blocks (
    ulid               TEXT PRIMARY KEY,
    tenant             TEXT NOT NULL,        -- label tenant_id, or default-tenant
    min_time           INTEGER NOT NULL,
    max_time           INTEGER NOT NULL,
    span               INTEGER NOT NULL,     -- bits of max_time - min_time: the block is shorter than 2^span ms
    resolution         INTEGER NOT NULL,     -- ms: 0 raw, 300000, 3600000
    level              INTEGER NOT NULL,     -- compaction level, 1 = as cut
    state              TEXT NOT NULL CHECK (state IN ('live', 'superseded', 'deleting', 'gone', 'quarantined')),
    reason             TEXT NOT NULL,        -- of a quarantine, in words
    labels             TEXT NOT NULL,        -- external labels, JSON object
    source             TEXT NOT NULL,        -- thanos.source
    samples            INTEGER NOT NULL,
    series             INTEGER NOT NULL,
    chunks             INTEGER NOT NULL,
    bytes              INTEGER NOT NULL,     -- of all its objects
    marked             INTEGER NOT NULL,     -- 1: deletion-mark.json is there
    missing            INTEGER NOT NULL,     -- audits in a row that did not see it
    added_at           INTEGER NOT NULL,     -- when this row came
    meta_size          INTEGER NOT NULL,     -- of meta.json as listed: a change means read it again
    meta_mtime         INTEGER NOT NULL,     -- 0: not listed yet
    objects            TEXT NOT NULL,        -- what is below <ulid>/ and how long: JSON {"index":1234,...}, ascending
    index_size         INTEGER,              -- where the index' parts are; NULL until the first read
    symbols_off        INTEGER,
    series_off         INTEGER,
    postings_off       INTEGER,
    postings_table_off INTEGER,
    meta_crc           INTEGER NOT NULL,     -- CRC-32C of meta
    crc                INTEGER NOT NULL,     -- CRC-32C of the columns above
    meta               TEXT NOT NULL         -- meta.json, whole
) STRICT, WITHOUT ROWID;

-- A query's plan: blocks of a tenant and resolution that overlap [a, b]. With span given, min_time lies between a - 2^span and b: a
-- seek for each span, however many blocks there are before and after.
CREATE INDEX blocks_by_time ON blocks (tenant, resolution, span, min_time);

-- compaction.sources of each block: a marked block is read only while no unmarked live one covers all of its sources.
CREATE TABLE block_sources (
    source TEXT NOT NULL,
    ulid   TEXT NOT NULL,
    PRIMARY KEY (source, ulid)
) STRICT, WITHOUT ROWID;
CREATE INDEX block_sources_by_block ON block_sources (ulid);

-- What this node has on disk and has not finished: the same columns, its own states.
CREATE TABLE local_blocks (
    ulid               TEXT PRIMARY KEY,
    tenant             TEXT NOT NULL,
    min_time           INTEGER NOT NULL,
    max_time           INTEGER NOT NULL,
    span               INTEGER NOT NULL,
    resolution         INTEGER NOT NULL,
    level              INTEGER NOT NULL,
    state              TEXT NOT NULL CHECK (state IN ('cutting', 'local', 'uploading', 'live', 'quarantined')),
    reason             TEXT NOT NULL,
    labels             TEXT NOT NULL,
    source             TEXT NOT NULL,
    samples            INTEGER NOT NULL,
    series             INTEGER NOT NULL,
    chunks             INTEGER NOT NULL,
    bytes              INTEGER NOT NULL,
    marked             INTEGER NOT NULL,
    missing            INTEGER NOT NULL,
    added_at           INTEGER NOT NULL,
    meta_size          INTEGER NOT NULL,
    meta_mtime         INTEGER NOT NULL,
    objects            TEXT NOT NULL,
    index_size         INTEGER,
    symbols_off        INTEGER,
    series_off         INTEGER,
    postings_off       INTEGER,
    postings_table_off INTEGER,
    meta_crc           INTEGER NOT NULL,
    crc                INTEGER NOT NULL,
    meta               TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX local_blocks_by_time ON local_blocks (tenant, resolution, span, min_time);

-- How often a block has changed, by whoever saw it change, this node or another: of two accounts of a block the one with more is the newer. It outlives
-- the block's row for a while, so that an old account of a block that is gone does not bring it back.
CREATE TABLE block_versions (
    ulid    TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    gone_at INTEGER                          -- when this node learned that it went; NULL: it is in blocks
) STRICT, WITHOUT ROWID;
CREATE INDEX block_versions_gone ON block_versions (gone_at) WHERE gone_at IS NOT NULL;

-- What this node saw change in the bucket, in order and without a gap: its change feed, which peers follow.
CREATE TABLE feed (
    seq  INTEGER PRIMARY KEY,
    at   INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('live', 'marked', 'quarantined', 'superseded', 'deleting', 'gone')), -- as it was then
    ulid TEXT NOT NULL
) STRICT;

-- How far this node has read the feeds of others.
CREATE TABLE followed (
    node TEXT PRIMARY KEY,
    feed TEXT NOT NULL,                      -- its name: a catalog that is made anew has another
    seq  INTEGER NOT NULL,                   -- everything up to here is in blocks
    at   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
