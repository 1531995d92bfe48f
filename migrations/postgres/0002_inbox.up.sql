-- A row means that the consumer has handled the message; it commits together with the handler's effects.
CREATE TABLE backstop_inbox (
    consumer    text COLLATE "C" NOT NULL,
    message_key text COLLATE "C" NOT NULL,
    handled_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, message_key)
) WITH (
    -- Rows are written once and pruned by age: a share of this table is far too many dead rows.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
);
CREATE INDEX backstop_inbox_age ON backstop_inbox (consumer, handled_at);

-- Failures that wait. The lowest n of a key is its head; only heads run.
-- Ordering keys may be of any length, so indexes hold their digest.
CREATE TABLE backstop_held (
    n            bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    consumer     text COLLATE "C" NOT NULL,
    place        text COLLATE "C" NOT NULL,
    ordering_key bytea NOT NULL,
    message_key  text COLLATE "C" NOT NULL,
    state        text NOT NULL CHECK (state IN ('retry', 'waiting')),
    due_at       timestamptz NOT NULL DEFAULT now(),
    attempts     integer NOT NULL DEFAULT 0,
    throttled    integer NOT NULL DEFAULT 0,
    condemned    text,
    class        text,
    error        text,
    held_since   timestamptz NOT NULL DEFAULT now(),
    msg_key      bytea,
    headers      bytea NOT NULL,
    body         bytea,
    origin       json NOT NULL,
    via          text NOT NULL CHECK (via IN ('live', 'door')),
    UNIQUE (consumer, message_key)
) WITH (
    fillfactor = 90,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX backstop_held_order ON backstop_held (consumer, place, sha256(ordering_key), n);
CREATE INDEX backstop_held_due ON backstop_held (consumer, due_at) WHERE state = 'retry';
