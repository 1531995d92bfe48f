-- Letters that failed alike, counts of them that are kept up to date by triggers, what is searched for, redrives as jobs,
-- and what consumers say of themselves.

-- Letters of one fingerprint, consumer, place, class and reason; kind is a JSON array of these five.
CREATE TABLE backstop_letter_group (
    n           INTEGER PRIMARY KEY,
    kind        TEXT NOT NULL UNIQUE,
    fingerprint TEXT,
    consumer    TEXT,
    place       TEXT,
    class       TEXT,
    reason      TEXT,
    error_type  TEXT,
    error       TEXT,
    first_seen  INTEGER NOT NULL,
    last_seen   INTEGER NOT NULL
) STRICT;
CREATE TABLE backstop_letter_count (
    grp     INTEGER NOT NULL,
    status  TEXT NOT NULL,
    letters INTEGER NOT NULL,
    PRIMARY KEY (grp, status)
) STRICT, WITHOUT ROWID;
-- When letters of a group died, in minutes since the epoch, for some two hours back.
CREATE TABLE backstop_letter_minute (
    grp     INTEGER NOT NULL,
    minute  INTEGER NOT NULL,
    letters INTEGER NOT NULL,
    PRIMARY KEY (grp, minute)
) STRICT, WITHOUT ROWID;

-- seen_at is in milliseconds since the epoch.
ALTER TABLE backstop_letter ADD COLUMN grp INTEGER;
ALTER TABLE backstop_letter ADD COLUMN seen_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE backstop_letter ADD COLUMN outcome TEXT;
ALTER TABLE backstop_letter ADD COLUMN redrive TEXT;
ALTER TABLE backstop_letter ADD COLUMN hold TEXT;

-- Letters that are there already; their errors and headers are not searched for.
UPDATE backstop_letter
SET seen_at = coalesce(CAST(round(unixepoch(coalesce(dead_at, collected_at), 'subsec') * 1000) AS INTEGER), 0);
INSERT INTO backstop_letter_group (kind, fingerprint, consumer, place, class, reason, error_type, error, first_seen, last_seen)
SELECT json_array(fingerprint, consumer, place, class, reason), fingerprint, consumer, place, class, reason,
       min(error_type), min(error), min(seen_at), max(seen_at)
FROM backstop_letter GROUP BY fingerprint, consumer, place, class, reason;
UPDATE backstop_letter SET grp = (
    SELECT g.n FROM backstop_letter_group AS g WHERE g.kind = json_array(
        backstop_letter.fingerprint, backstop_letter.consumer, backstop_letter.place, backstop_letter.class,
        backstop_letter.reason));
INSERT INTO backstop_letter_count (grp, status, letters) SELECT grp, status, count(*) FROM backstop_letter GROUP BY grp, status;

DROP INDEX backstop_letter_status;
DROP INDEX backstop_letter_fingerprint;
DROP INDEX backstop_letter_message;
CREATE INDEX backstop_letter_of_group ON backstop_letter (grp, status, seen_at, n);
CREATE INDEX backstop_letter_seen ON backstop_letter (seen_at, n);
CREATE INDEX backstop_letter_message ON backstop_letter (message_key, consumer);
CREATE INDEX backstop_letter_key ON backstop_letter (msg_key);
CREATE INDEX backstop_letter_redrive ON backstop_letter (redrive, seen_at, n, grp, status) WHERE redrive IS NOT NULL;
CREATE INDEX backstop_letter_outcome ON backstop_letter (outcome, seen_at, n, grp, status) WHERE outcome IS NOT NULL;
CREATE INDEX backstop_letter_hold ON backstop_letter (seen_at, n) WHERE hold IS NOT NULL;

CREATE TABLE backstop_letter_term (
    term   TEXT NOT NULL,
    letter INTEGER NOT NULL REFERENCES backstop_letter (n) ON DELETE CASCADE,
    PRIMARY KEY (term, letter)
) STRICT, WITHOUT ROWID;
CREATE INDEX backstop_letter_term_letter ON backstop_letter_term (letter);

CREATE TRIGGER backstop_letter_inserted AFTER INSERT ON backstop_letter BEGIN
    INSERT INTO backstop_letter_count (grp, status, letters) VALUES (NEW.grp, NEW.status, 1)
    ON CONFLICT (grp, status) DO UPDATE SET letters = letters + 1;
    INSERT INTO backstop_letter_minute (grp, minute, letters)
    SELECT NEW.grp, NEW.seen_at / 60000, 1
    WHERE NEW.seen_at BETWEEN (unixepoch() - 3600) * 1000 AND (unixepoch() + 300) * 1000
    ON CONFLICT (grp, minute) DO UPDATE SET letters = letters + 1;
    DELETE FROM backstop_letter_minute WHERE grp = NEW.grp AND minute < unixepoch() / 60 - 120;
END;
CREATE TRIGGER backstop_letter_updated AFTER UPDATE OF status ON backstop_letter WHEN OLD.status <> NEW.status BEGIN
    UPDATE backstop_letter_count SET letters = letters - 1 WHERE grp = OLD.grp AND status = OLD.status;
    INSERT INTO backstop_letter_count (grp, status, letters) VALUES (NEW.grp, NEW.status, 1)
    ON CONFLICT (grp, status) DO UPDATE SET letters = letters + 1;
END;
CREATE TRIGGER backstop_letter_deleted AFTER DELETE ON backstop_letter BEGIN
    UPDATE backstop_letter_count SET letters = letters - 1 WHERE grp = OLD.grp AND status = OLD.status;
END;

-- plan is JSON: what was asked for. Times are in milliseconds since the epoch.
CREATE TABLE backstop_redrive (
    n                 INTEGER PRIMARY KEY AUTOINCREMENT,
    id                TEXT NOT NULL UNIQUE,
    plan              TEXT NOT NULL,
    from_status       TEXT NOT NULL,
    rate              REAL,
    silent_after      INTEGER NOT NULL,
    run               TEXT NOT NULL,
    phase             TEXT NOT NULL,
    why               TEXT,
    forgiven_failures INTEGER NOT NULL DEFAULT 0,
    forgiven_outcomes INTEGER NOT NULL DEFAULT 0,
    created_at        INTEGER NOT NULL DEFAULT (CAST(round(unixepoch('now', 'subsec') * 1000) AS INTEGER))
) STRICT;

-- The letters of a redrive, frozen when it was made.
CREATE TABLE backstop_redrive_letter (
    redrive INTEGER NOT NULL REFERENCES backstop_redrive (n) ON DELETE CASCADE,
    letter  INTEGER NOT NULL REFERENCES backstop_letter (n) ON DELETE CASCADE,
    canary  INTEGER NOT NULL,
    step    TEXT NOT NULL,
    sent_at INTEGER,
    PRIMARY KEY (redrive, letter)
) STRICT, WITHOUT ROWID;
CREATE INDEX backstop_redrive_letter_step ON backstop_redrive_letter (redrive, step, letter);
CREATE INDEX backstop_redrive_letter_letter ON backstop_redrive_letter (letter);
CREATE INDEX backstop_redrive_letter_late ON backstop_redrive_letter (sent_at) WHERE step = 'waiting';

CREATE TABLE backstop_redrive_count (
    redrive INTEGER NOT NULL,
    canary  INTEGER NOT NULL,
    step    TEXT NOT NULL,
    letters INTEGER NOT NULL,
    PRIMARY KEY (redrive, canary, step)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER backstop_redrive_inserted AFTER INSERT ON backstop_redrive_letter BEGIN
    INSERT INTO backstop_redrive_count (redrive, canary, step, letters) VALUES (NEW.redrive, NEW.canary, NEW.step, 1)
    ON CONFLICT (redrive, canary, step) DO UPDATE SET letters = letters + 1;
END;
CREATE TRIGGER backstop_redrive_updated AFTER UPDATE OF step ON backstop_redrive_letter WHEN OLD.step <> NEW.step BEGIN
    UPDATE backstop_redrive_count SET letters = letters - 1
    WHERE redrive = OLD.redrive AND canary = OLD.canary AND step = OLD.step;
    INSERT INTO backstop_redrive_count (redrive, canary, step, letters) VALUES (NEW.redrive, NEW.canary, NEW.step, 1)
    ON CONFLICT (redrive, canary, step) DO UPDATE SET letters = letters + 1;
END;
CREATE TRIGGER backstop_redrive_deleted AFTER DELETE ON backstop_redrive_letter BEGIN
    UPDATE backstop_redrive_count SET letters = letters - 1
    WHERE redrive = OLD.redrive AND canary = OLD.canary AND step = OLD.step;
END;

-- What each instance of a consumer said of itself last; report is JSON, reported_at in milliseconds since the epoch.
CREATE TABLE backstop_consumer (
    consumer    TEXT NOT NULL,
    instance    TEXT NOT NULL,
    reported_at INTEGER NOT NULL,
    report      TEXT NOT NULL,
    PRIMARY KEY (consumer, instance)
) STRICT, WITHOUT ROWID;
