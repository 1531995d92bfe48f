-- Rows of the outbox whose time has not come. The relay moves each into the outbox, with a number given then and the id
-- that it has here, when publish_after has passed. Part of the public contract: any language may insert, and only
-- publish_after (RFC 3339), destination and payload need to be given; deleting a row before its time takes it back.
CREATE TABLE backstop_outbox_scheduled (
    n             INTEGER PRIMARY KEY AUTOINCREMENT,
    publish_after TEXT NOT NULL CHECK (unixepoch(publish_after) IS NOT NULL),
    id            TEXT NOT NULL DEFAULT (
                      lower(hex(randomblob(4))) || '-' || lower(hex(randomblob(2)))
                      || '-4' || substr(lower(hex(randomblob(2))), 2)
                      || '-' || substr('89ab', 1 + (random() & 3), 1) || substr(lower(hex(randomblob(2))), 2)
                      || '-' || lower(hex(randomblob(6)))
                  ) CHECK (id <> '' AND octet_length(id) <= 255),
    source        TEXT,
    destination   TEXT NOT NULL CHECK (destination <> ''),
    routing_key   TEXT,
    key           TEXT,
    kind          TEXT,
    subject       TEXT,
    event_time    TEXT,
    content_type  TEXT,
    headers       TEXT,
    payload       BLOB,
    created_at    TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);
CREATE INDEX backstop_outbox_scheduled_due ON backstop_outbox_scheduled (unixepoch(publish_after, 'subsec'), n);
