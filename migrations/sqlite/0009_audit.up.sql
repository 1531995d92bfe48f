-- Who did what by hand over the ledger. Nobody changes or removes an entry by an oversight. Times are in milliseconds
-- since the epoch.
CREATE TABLE backstop_audit (
    n       INTEGER PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL DEFAULT (CAST(round(unixepoch('now', 'subsec') * 1000) AS INTEGER)),
    deed    TEXT NOT NULL,
    step    TEXT NOT NULL,
    who     TEXT NOT NULL,
    role    TEXT NOT NULL,
    origin  TEXT NOT NULL,
    action  TEXT NOT NULL,
    object  TEXT NOT NULL,
    redrive TEXT,
    letters INTEGER,
    because TEXT,
    error   TEXT
) STRICT;
CREATE INDEX backstop_audit_deed ON backstop_audit (deed) WHERE step <> 'begun';
CREATE INDEX backstop_audit_who ON backstop_audit (who, n);
CREATE INDEX backstop_audit_redrive ON backstop_audit (redrive, n) WHERE redrive IS NOT NULL;
CREATE TRIGGER backstop_audit_unchanged BEFORE UPDATE ON backstop_audit BEGIN
    SELECT RAISE(ABORT, 'the audit log only grows');
END;
CREATE TRIGGER backstop_audit_kept BEFORE DELETE ON backstop_audit BEGIN
    SELECT RAISE(ABORT, 'the audit log only grows');
END;
