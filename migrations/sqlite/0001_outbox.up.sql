-- The outbox is a public contract: any language may insert, and only destination and payload need to be given.
-- AUTOINCREMENT: a number that was used is never used again, not even for the newest row after its deletion.
CREATE TABLE backstop_outbox (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    id           TEXT NOT NULL DEFAULT (
                     lower(hex(randomblob(4))) || '-' || lower(hex(randomblob(2)))
                     || '-4' || substr(lower(hex(randomblob(2))), 2)
                     || '-' || substr('89ab', 1 + (random() & 3), 1) || substr(lower(hex(randomblob(2))), 2)
                     || '-' || lower(hex(randomblob(6)))
                 ) CHECK (id <> '' AND octet_length(id) <= 255),
    source       TEXT,
    destination  TEXT NOT NULL CHECK (destination <> ''),
    routing_key  TEXT,
    key          TEXT,
    kind         TEXT,
    subject      TEXT,
    event_time   TEXT,
    content_type TEXT,
    headers      TEXT,
    payload      BLOB,
    created_at   TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);

-- Rows that can never be sent, as they were, whatever is wrong with them. seq is the number that the row had in the
-- outbox.
CREATE TABLE backstop_outbox_dead (
    n            INTEGER PRIMARY KEY AUTOINCREMENT,
    seq          INTEGER NOT NULL,
    id           TEXT,
    source       TEXT,
    destination  TEXT,
    routing_key  TEXT,
    key          TEXT,
    kind         TEXT,
    subject      TEXT,
    event_time   TEXT,
    content_type TEXT,
    headers      TEXT,
    payload      BLOB,
    created_at   TEXT,
    reason       TEXT NOT NULL,
    error        TEXT NOT NULL,
    attempts     INTEGER NOT NULL DEFAULT 1,
    died_at      TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);
