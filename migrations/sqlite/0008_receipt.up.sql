-- Receipts of redriven messages that a consumer owes: written in the transaction that handles the message, deleted when
-- the broker has confirmed the receipt. Almost always empty.
CREATE TABLE backstop_receipt (
    n          INTEGER PRIMARY KEY AUTOINCREMENT,
    consumer   TEXT NOT NULL,
    instance   TEXT NOT NULL,
    receipt    TEXT NOT NULL,
    owed_since INTEGER NOT NULL
) STRICT;
CREATE INDEX backstop_receipt_owed ON backstop_receipt (consumer, n);
