-- The outbox is a public contract: any language may insert, and only destination and payload need a value.
-- seq must come from the sequence itself, with CACHE 1: a session that reserves numbers ahead breaks their order.
CREATE TABLE backstop_outbox (
    seq          bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    id           text NOT NULL DEFAULT gen_random_uuid()::text CHECK (id <> '' AND octet_length(id) <= 255),
    source       text,
    destination  text NOT NULL CHECK (destination <> ''),
    routing_key  text,
    key          text,
    kind         text,
    subject      text,
    -- What RFC 3339 can tell: the years 0 to 9999, and no infinity.
    event_time   timestamptz CHECK (event_time >= '0001-01-01 00:00:00+00 BC' AND event_time < '10000-01-01 00:00:00+00'),
    content_type text,
    headers      jsonb,
    payload      bytea,
    created_at   timestamptz NOT NULL DEFAULT now()
) WITH (
    -- Every row is deleted soon after it is written: vacuum by count, not by a share of a table that is nearly empty.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000
);

-- Rows that can never be sent, with the reason. seq is the number that the row had in the outbox.
CREATE TABLE backstop_outbox_dead (
    n            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    seq          bigint NOT NULL,
    id           text NOT NULL,
    source       text,
    destination  text NOT NULL,
    routing_key  text,
    key          text,
    kind         text,
    subject      text,
    event_time   timestamptz,
    content_type text,
    headers      jsonb,
    payload      bytea,
    created_at   timestamptz NOT NULL,
    reason       text NOT NULL,
    error        text NOT NULL,
    attempts     integer NOT NULL DEFAULT 1,
    died_at      timestamptz NOT NULL DEFAULT now()
);
