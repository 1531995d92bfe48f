-- Who did what by hand over the ledger. Nobody changes or removes an entry, not even who owns the table, by an oversight.
CREATE TABLE backstop_audit (
    n       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    deed    text NOT NULL,
    step    text NOT NULL,
    who     text COLLATE "C" NOT NULL,
    role    text NOT NULL,
    origin  text NOT NULL,
    action  text COLLATE "C" NOT NULL,
    object  text NOT NULL,
    redrive text COLLATE "C",
    letters bigint,
    because text,
    error   text
);
CREATE INDEX backstop_audit_deed ON backstop_audit (deed) WHERE step <> 'begun';
CREATE INDEX backstop_audit_who ON backstop_audit (who, n);
CREATE INDEX backstop_audit_redrive ON backstop_audit (redrive, n) WHERE redrive IS NOT NULL;

CREATE FUNCTION backstop_audit_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log only grows' USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER backstop_audit_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON backstop_audit
    FOR EACH STATEMENT EXECUTE FUNCTION backstop_audit_grows();
