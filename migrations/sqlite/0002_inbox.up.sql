-- A row means: this consumer has handled this message. Times in milliseconds since the epoch.
CREATE TABLE backstop_inbox (
    consumer    TEXT NOT NULL,
    message_key TEXT NOT NULL,
    handled_at  INTEGER NOT NULL,
    PRIMARY KEY (consumer, message_key)
) WITHOUT ROWID, STRICT;
CREATE INDEX backstop_inbox_age ON backstop_inbox (consumer, handled_at);

-- A key with a row here is held; its lowest n is the head, and only heads run. headers is an array of
-- [name, text | null | {"hex": bytes}].
CREATE TABLE backstop_held (
    n            INTEGER PRIMARY KEY AUTOINCREMENT,
    consumer     TEXT NOT NULL,
    place        TEXT NOT NULL,
    ordering_key BLOB NOT NULL,
    message_key  TEXT NOT NULL,
    via          TEXT NOT NULL CHECK (via IN ('live', 'door')),
    state        TEXT NOT NULL CHECK (state IN ('retry', 'waiting')),
    due_at       INTEGER NOT NULL,
    attempts     INTEGER NOT NULL DEFAULT 0,
    throttled    INTEGER NOT NULL DEFAULT 0,
    condemned    TEXT,
    class        TEXT,
    error        TEXT,
    msg_key      BLOB,
    headers      TEXT NOT NULL,
    body         BLOB,
    origin       TEXT NOT NULL,
    held_since   INTEGER NOT NULL,
    UNIQUE (consumer, message_key)
) STRICT;
CREATE INDEX backstop_held_order ON backstop_held (consumer, place, ordering_key, n);
CREATE INDEX backstop_held_due ON backstop_held (consumer, due_at) WHERE state = 'retry';
