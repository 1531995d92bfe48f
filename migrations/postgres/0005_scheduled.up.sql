-- Rows of the outbox whose time has not come. The relay moves each into the outbox, with a number given then and the id
-- that it has here, when publish_after has passed by this server's clock. Part of the public contract: any language may
-- insert, and only publish_after, destination and payload need a value; deleting a row before its time takes it back.
CREATE TABLE backstop_outbox_scheduled (
    n             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    publish_after timestamptz NOT NULL,
    id            text NOT NULL DEFAULT gen_random_uuid()::text CHECK (id <> '' AND octet_length(id) <= 255),
    source        text,
    destination   text NOT NULL CHECK (destination <> ''),
    routing_key   text,
    key           text,
    kind          text,
    subject       text,
    event_time    timestamptz CHECK (event_time >= '0001-01-01 00:00:00+00 BC' AND event_time < '10000-01-01 00:00:00+00'),
    content_type  text,
    headers       jsonb,
    payload       bytea,
    created_at    timestamptz NOT NULL DEFAULT now()
) WITH (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX backstop_outbox_scheduled_due ON backstop_outbox_scheduled (publish_after, n);
