-- Who owns a job, by this file's clock (milliseconds since the epoch). The row stays when a lease ends, so that its
-- token only ever grows.
CREATE TABLE backstop_lease (
    name       TEXT PRIMARY KEY NOT NULL,
    owner      TEXT NOT NULL,
    token      INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) WITHOUT ROWID, STRICT;
