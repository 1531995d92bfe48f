-- Letters that failed alike, counts of them that are kept up to date by triggers, what is searched for, redrives as jobs,
-- and what consumers say of themselves.

-- Letters of one fingerprint, consumer, place, class and reason. digest is the hash of these five, because texts from
-- headers may be too long for an index.
CREATE TABLE backstop_letter_group (
    n           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest      bytea NOT NULL UNIQUE,
    fingerprint text COLLATE "C",
    consumer    text COLLATE "C",
    place       text COLLATE "C",
    class       text COLLATE "C",
    reason      text COLLATE "C",
    error_type  text,
    error       text,
    first_seen  timestamptz NOT NULL,
    last_seen   timestamptz NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE backstop_letter_count (
    grp     bigint NOT NULL,
    status  text NOT NULL,
    letters bigint NOT NULL,
    PRIMARY KEY (grp, status)
) WITH (fillfactor = 50);

-- When letters of a group died, for some two hours back.
CREATE TABLE backstop_letter_minute (
    grp     bigint NOT NULL,
    minute  timestamptz NOT NULL,
    letters bigint NOT NULL,
    PRIMARY KEY (grp, minute)
) WITH (fillfactor = 50);

ALTER TABLE backstop_letter
    ADD COLUMN grp bigint,
    ADD COLUMN seen_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN terms text[] NOT NULL DEFAULT '{}',
    ADD COLUMN outcome text,
    ADD COLUMN redrive text COLLATE "C",
    ADD COLUMN hold text;

-- Letters that are there already; their headers are not searched for.
UPDATE backstop_letter SET seen_at = coalesce(dead_at, collected_at), terms = ARRAY(
    SELECT DISTINCT 'e:' || left(word, 64) FROM regexp_split_to_table(lower(error), '[^[:alnum:]]+') AS word
    WHERE word <> '' LIMIT 64);
INSERT INTO backstop_letter_group (digest, fingerprint, consumer, place, class, reason, error_type, error, first_seen, last_seen)
SELECT sha256(convert_to(jsonb_build_array(fingerprint, consumer, place, class, reason)::text, 'UTF8')),
       fingerprint, consumer, place, class, reason, min(error_type), min(error), min(seen_at), max(seen_at)
FROM backstop_letter GROUP BY fingerprint, consumer, place, class, reason;
UPDATE backstop_letter AS l SET grp = g.n FROM backstop_letter_group AS g
WHERE g.digest = sha256(convert_to(jsonb_build_array(l.fingerprint, l.consumer, l.place, l.class, l.reason)::text, 'UTF8'));
ALTER TABLE backstop_letter ALTER COLUMN grp SET NOT NULL;
INSERT INTO backstop_letter_count (grp, status, letters) SELECT grp, status, count(*) FROM backstop_letter GROUP BY grp, status;

DROP INDEX backstop_letter_status;
DROP INDEX backstop_letter_fingerprint;
DROP INDEX backstop_letter_message;
CREATE INDEX backstop_letter_of_group ON backstop_letter (grp, status, seen_at, n);
CREATE INDEX backstop_letter_seen ON backstop_letter (seen_at, n);
CREATE INDEX backstop_letter_message ON backstop_letter USING hash (message_key);
CREATE INDEX backstop_letter_key ON backstop_letter USING hash (msg_key);
CREATE INDEX backstop_letter_terms ON backstop_letter USING gin (terms);
CREATE INDEX backstop_letter_redrive ON backstop_letter (redrive, seen_at, n) INCLUDE (grp, status) WHERE redrive IS NOT NULL;
CREATE INDEX backstop_letter_outcome ON backstop_letter (outcome, seen_at, n) INCLUDE (grp, status) WHERE outcome IS NOT NULL;
CREATE INDEX backstop_letter_hold ON backstop_letter (seen_at, n) WHERE hold IS NOT NULL;

CREATE FUNCTION backstop_letter_tally() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO backstop_letter_count AS c (grp, status, letters)
        SELECT grp, status, count(*) FROM fresh GROUP BY grp, status ORDER BY grp, status
        ON CONFLICT (grp, status) DO UPDATE SET letters = c.letters + excluded.letters;
        INSERT INTO backstop_letter_minute AS m (grp, minute, letters)
        SELECT grp, date_trunc('minute', seen_at), count(*) FROM fresh
        WHERE seen_at > now() - interval '1 hour' AND seen_at < now() + interval '5 minutes'
        GROUP BY 1, 2 ORDER BY 1, 2
        ON CONFLICT (grp, minute) DO UPDATE SET letters = m.letters + excluded.letters;
        DELETE FROM backstop_letter_minute
        WHERE grp IN (SELECT grp FROM fresh) AND minute < now() - interval '2 hours';
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO backstop_letter_count AS c (grp, status, letters)
        SELECT grp, status, sum(d) FROM (
            SELECT grp, status, 1 AS d FROM fresh UNION ALL SELECT grp, status, -1 FROM stale
        ) AS moved GROUP BY grp, status HAVING sum(d) <> 0 ORDER BY grp, status
        ON CONFLICT (grp, status) DO UPDATE SET letters = c.letters + excluded.letters;
    ELSE
        INSERT INTO backstop_letter_count AS c (grp, status, letters)
        SELECT grp, status, -count(*) FROM stale GROUP BY grp, status ORDER BY grp, status
        ON CONFLICT (grp, status) DO UPDATE SET letters = c.letters + excluded.letters;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER backstop_letter_inserted AFTER INSERT ON backstop_letter
    REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION backstop_letter_tally();
CREATE TRIGGER backstop_letter_updated AFTER UPDATE ON backstop_letter
    REFERENCING NEW TABLE AS fresh OLD TABLE AS stale FOR EACH STATEMENT EXECUTE FUNCTION backstop_letter_tally();
CREATE TRIGGER backstop_letter_deleted AFTER DELETE ON backstop_letter
    REFERENCING OLD TABLE AS stale FOR EACH STATEMENT EXECUTE FUNCTION backstop_letter_tally();

-- plan is JSON: what was asked for.
CREATE TABLE backstop_redrive (
    n                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id                text COLLATE "C" NOT NULL UNIQUE,
    plan              text NOT NULL,
    from_status       text NOT NULL,
    rate              double precision,
    silent_after      double precision NOT NULL,
    run               text NOT NULL,
    phase             text NOT NULL,
    why               text,
    forgiven_failures bigint NOT NULL DEFAULT 0,
    forgiven_outcomes bigint NOT NULL DEFAULT 0,
    created_at        timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX backstop_redrive_running ON backstop_redrive (n) WHERE run = 'running';

-- The letters of a redrive, frozen when it was made.
CREATE TABLE backstop_redrive_letter (
    redrive bigint NOT NULL REFERENCES backstop_redrive (n) ON DELETE CASCADE,
    letter  bigint NOT NULL REFERENCES backstop_letter (n) ON DELETE CASCADE,
    canary  boolean NOT NULL,
    step    text NOT NULL,
    sent_at timestamptz,
    PRIMARY KEY (redrive, letter)
);
CREATE INDEX backstop_redrive_letter_step ON backstop_redrive_letter (redrive, step, letter);
CREATE INDEX backstop_redrive_letter_letter ON backstop_redrive_letter (letter);
CREATE INDEX backstop_redrive_letter_late ON backstop_redrive_letter (sent_at) WHERE step = 'waiting';

CREATE TABLE backstop_redrive_count (
    redrive bigint NOT NULL,
    canary  boolean NOT NULL,
    step    text NOT NULL,
    letters bigint NOT NULL,
    PRIMARY KEY (redrive, canary, step)
) WITH (fillfactor = 50);
CREATE FUNCTION backstop_redrive_tally() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO backstop_redrive_count AS c (redrive, canary, step, letters)
        SELECT redrive, canary, step, count(*) FROM fresh GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (redrive, canary, step) DO UPDATE SET letters = c.letters + excluded.letters;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO backstop_redrive_count AS c (redrive, canary, step, letters)
        SELECT redrive, canary, step, sum(d) FROM (
            SELECT redrive, canary, step, 1 AS d FROM fresh UNION ALL SELECT redrive, canary, step, -1 FROM stale
        ) AS moved GROUP BY 1, 2, 3 HAVING sum(d) <> 0 ORDER BY 1, 2, 3
        ON CONFLICT (redrive, canary, step) DO UPDATE SET letters = c.letters + excluded.letters;
    ELSE
        UPDATE backstop_redrive_count AS c SET letters = c.letters - gone.letters
        FROM (SELECT redrive, canary, step, count(*) AS letters FROM stale GROUP BY 1, 2, 3) AS gone
        WHERE (c.redrive, c.canary, c.step) = (gone.redrive, gone.canary, gone.step);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER backstop_redrive_inserted AFTER INSERT ON backstop_redrive_letter
    REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION backstop_redrive_tally();
CREATE TRIGGER backstop_redrive_updated AFTER UPDATE ON backstop_redrive_letter
    REFERENCING NEW TABLE AS fresh OLD TABLE AS stale FOR EACH STATEMENT EXECUTE FUNCTION backstop_redrive_tally();
CREATE TRIGGER backstop_redrive_deleted AFTER DELETE ON backstop_redrive_letter
    REFERENCING OLD TABLE AS stale FOR EACH STATEMENT EXECUTE FUNCTION backstop_redrive_tally();

-- What each instance of a consumer said of itself last; report is JSON.
CREATE TABLE backstop_consumer (
    consumer    text COLLATE "C" NOT NULL,
    instance    text COLLATE "C" NOT NULL,
    reported_at timestamptz NOT NULL,
    report      text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, instance)
);
