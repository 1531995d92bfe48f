-- Dead letters collected from brokers. n is the order in which the ledger took them.
CREATE TABLE backstop_letter (
    n               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id              text COLLATE "C" NOT NULL UNIQUE,
    message_key     text COLLATE "C",
    consumer        text COLLATE "C",
    place           text COLLATE "C",
    found_in        text NOT NULL,
    door            text,
    reason          text,
    class           text,
    error_type      text,
    error           text,
    fingerprint     text COLLATE "C",
    attempts        bigint,
    generation      bigint NOT NULL DEFAULT 0,
    first_failed_at timestamptz,
    dead_at         timestamptz,
    status          text NOT NULL,
    collected_at    timestamptz NOT NULL DEFAULT now(),
    msg_key         bytea,
    headers         bytea NOT NULL,
    body            bytea
);
CREATE INDEX backstop_letter_status ON backstop_letter (status, n);
-- Hash indexes, because these texts come from headers and may be of any length.
CREATE INDEX backstop_letter_message ON backstop_letter USING hash (message_key) WHERE status IN ('open', 'redriving');
CREATE INDEX backstop_letter_fingerprint ON backstop_letter USING hash (fingerprint);

-- What happened to a letter.
CREATE TABLE backstop_letter_event (
    n      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    letter bigint NOT NULL REFERENCES backstop_letter (n) ON DELETE CASCADE,
    at     timestamptz NOT NULL DEFAULT now(),
    what   text NOT NULL,
    detail text
);
CREATE INDEX backstop_letter_event_letter ON backstop_letter_event (letter, n);
