-- Runs of a held message in a row that did not come to an end, because their process died.
ALTER TABLE backstop_held ADD COLUMN crashes integer NOT NULL DEFAULT 0;

-- The same of messages that are not held and may have felled a process. Almost always empty.
CREATE TABLE backstop_charge (
    consumer    text COLLATE "C" NOT NULL,
    message_key text COLLATE "C" NOT NULL,
    crashes     integer NOT NULL,
    charged_at  timestamptz NOT NULL,
    PRIMARY KEY (consumer, message_key)
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000
);
