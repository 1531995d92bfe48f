SET LOCAL lock_timeout = '5s';
ALTER TABLE backstop_outbox_dead DROP COLUMN origin, DROP COLUMN original;
