-- Receipts of redriven messages that a consumer owes: written in the transaction that handles the message, deleted when
-- the broker has confirmed the receipt. Almost always empty.
CREATE TABLE backstop_receipt (
    n          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer   text COLLATE "C" NOT NULL,
    instance   text COLLATE "C" NOT NULL,
    receipt    text NOT NULL,
    owed_since timestamptz NOT NULL DEFAULT now()
) WITH (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000
);
CREATE INDEX backstop_receipt_owed ON backstop_receipt (consumer, n);
