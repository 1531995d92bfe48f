-- Dead letters, in the order in which they were collected. Times are RFC 3339.
CREATE TABLE backstop_letter (
    n               INTEGER PRIMARY KEY AUTOINCREMENT,
    id              TEXT NOT NULL UNIQUE,
    message_key     TEXT,
    consumer        TEXT,
    place           TEXT,
    found_in        TEXT NOT NULL,
    door            TEXT,
    reason          TEXT,
    class           TEXT,
    error_type      TEXT,
    error           TEXT,
    fingerprint     TEXT,
    attempts        INTEGER,
    generation      INTEGER NOT NULL,
    first_failed_at TEXT,
    dead_at         TEXT,
    status          TEXT NOT NULL,
    collected_at    TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    msg_key         BLOB,
    headers         TEXT NOT NULL,
    body            BLOB
) STRICT;
CREATE INDEX backstop_letter_status ON backstop_letter (status, n);
CREATE INDEX backstop_letter_message ON backstop_letter (consumer, message_key);
CREATE INDEX backstop_letter_fingerprint ON backstop_letter (fingerprint, n);

CREATE TABLE backstop_letter_event (
    n      INTEGER PRIMARY KEY AUTOINCREMENT,
    letter INTEGER NOT NULL REFERENCES backstop_letter (n) ON DELETE CASCADE,
    at     TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    what   TEXT NOT NULL,
    detail TEXT
) STRICT;
CREATE INDEX backstop_letter_event_letter ON backstop_letter_event (letter, n);
