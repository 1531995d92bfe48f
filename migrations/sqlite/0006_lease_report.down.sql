ALTER TABLE backstop_lease DROP COLUMN report;
ALTER TABLE backstop_lease DROP COLUMN reported_at;
