DROP TABLE backstop_consumer;
DROP TABLE backstop_redrive_letter;
DROP TABLE backstop_redrive_count;
DROP TABLE backstop_redrive;
DROP FUNCTION backstop_redrive_tally();
DROP TRIGGER backstop_letter_inserted ON backstop_letter;
DROP TRIGGER backstop_letter_updated ON backstop_letter;
DROP TRIGGER backstop_letter_deleted ON backstop_letter;
DROP FUNCTION backstop_letter_tally();
DROP INDEX backstop_letter_message;
ALTER TABLE backstop_letter DROP COLUMN grp, DROP COLUMN seen_at, DROP COLUMN terms, DROP COLUMN outcome,
    DROP COLUMN redrive, DROP COLUMN hold;
DROP INDEX IF EXISTS backstop_letter_key;
DROP TABLE backstop_letter_group, backstop_letter_count, backstop_letter_minute;
CREATE INDEX backstop_letter_status ON backstop_letter (status, n);
CREATE INDEX backstop_letter_message ON backstop_letter USING hash (message_key) WHERE status IN ('open', 'redriving');
CREATE INDEX backstop_letter_fingerprint ON backstop_letter USING hash (fingerprint);
