SET LOCAL lock_timeout = '5s';
ALTER TABLE backstop_lease DROP COLUMN report, DROP COLUMN reported_at;
