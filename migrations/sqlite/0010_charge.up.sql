-- Runs of a held message in a row that did not come to an end, because their process died.
ALTER TABLE backstop_held ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0;

-- The same of messages that are not held and may have felled a process. Almost always empty.
CREATE TABLE backstop_charge (
    consumer    TEXT NOT NULL,
    message_key TEXT NOT NULL,
    crashes     INTEGER NOT NULL,
    charged_at  INTEGER NOT NULL,
    PRIMARY KEY (consumer, message_key)
) WITHOUT ROWID, STRICT;
